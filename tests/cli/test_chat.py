"""`moodpo chat`: commands within a conversation."""

from __future__ import annotations

import io

import pytest

from moodpo.cli.chat import Chat


class Echo:
    """Answers with what it was asked."""

    objectives = ("brevity", "detail")

    def __init__(self):
        self.asked = []

    def generate(self, prompts, objective_weights, **sampling):
        self.asked.append((list(prompts), tuple(objective_weights), sampling))
        return [f" reply {len(prompts)} "]


@pytest.fixture
def chat():
    return Chat(Echo(), (0.5, 0.5), seed=3, temperature=None)


def test_history_grows_and_is_forgotten(chat, capsys):
    assert chat.take("one")
    assert chat.take("two")
    assert capsys.readouterr().out == "reply 1\nreply 3\n"
    assert [turn["content"] for turn in chat.history] == ["one", "reply 1", "two", "reply 3"]
    assert chat.take("/reset")
    assert chat.history == []
    prompts, weights, sampling = chat.policy.asked[-1]
    assert [turn["role"] for turn in prompts] == ["user", "assistant", "user"]
    assert (weights, sampling) == ((0.5, 0.5), {"seed": 3, "temperature": None})


def test_weights_change_and_are_shown(chat, capsys):
    assert chat.take("/weights brevity=1")
    assert chat.weights == (1.0, 0.0)
    assert chat.take("/weights")
    assert capsys.readouterr().err == "weights: brevity=1, detail=0\n" * 2


def test_other_commands(chat, capsys):
    assert not chat.take("/quit")
    assert not chat.take("/exit")
    assert chat.take("")
    assert chat.take("/help")
    assert "/weights NAME=X" in capsys.readouterr().err
    assert chat.policy.asked == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("//help", "/help"),
        ("/etc/hosts, what is it?", "/etc/hosts, what is it?"),
        ("/2 of 3", "/2 of 3"),
        ("/wights brevity=1", None),
        ("/Reset", "/Reset"),
        ("/", None),
    ],
)
def test_a_message_may_begin_with_a_slash(chat, capsys, line, said):
    assert chat.take(line)
    if said is None:
        assert chat.policy.asked == []
        assert f"a message that begins so is written /{line.split()[0]}" in capsys.readouterr().err
    else:
        assert chat.policy.asked[0][0][0]["content"] == said


def test_a_full_context_says_how_to_go_on(run, trained, monkeypatch):
    lines = "Hello\n" + "x" * 2100 + "\n/reset\nHello\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    outcome = run("chat", trained, "--weights", "brevity=1", "--max_new_tokens", 5)
    assert outcome.code == 0, outcome.err
    assert "no room for a completion" in outcome.err
    assert "Forget the conversation with /reset." in outcome.err
    assert outcome.out.count("\n") >= 2


def test_an_undecodable_byte_spoils_its_own_line_alone(run, trained, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n/weights\nHello\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    outcome = run("chat", trained, "--weights", "brevity=1", "--max_new_tokens", 5)
    assert outcome.code == 0, outcome.err
    assert "character 4 of the prompt is half of a surrogate pair, or a byte" in outcome.err
    assert outcome.err.count("weights: brevity=1") == 2
    assert outcome.out.strip()


def test_a_conversation_on_standard_input(run, trained, monkeypatch):
    lines = "Hello\n/weights humor=1\n/weights detail=1\nAgain\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    outcome = run("chat", trained, "--weights", "brevity=1", "--max_new_tokens", 5)
    assert outcome.code == 0, outcome.err
    assert "weights: brevity=1, detail=0" in outcome.err
    assert "Unknown objective 'humor'" in outcome.err  # and it goes on
    assert "weights: brevity=0, detail=1" in outcome.err


def test_a_plain_model_needs_objectives(run, policy, monkeypatch):
    assert "--objectives" in run("chat", policy).err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    outcome = run("chat", policy, "--objectives", "a", "b")
    assert outcome.code == 0
    assert "weights: a=0.5, b=0.5" in outcome.err
