"""`moodpo generate`: one answer, side by side, JSON, standard input."""

from __future__ import annotations

import io
import json

import pytest

from moodpo.cli.generate import objectives_in
from moodpo.policy import SteerablePolicy

SHORT = ("--max_new_tokens", 6)
WEIGHTS = "brevity=0.7,detail=0.3"


def test_one_answer_is_plain_text(run, trained):
    outcome = run("generate", trained, "--weights", WEIGHTS, *SHORT, "Hello")
    assert outcome.code == 0, outcome.err
    policy = SteerablePolicy.from_pretrained(trained)
    (expected,) = policy.generate("Hello", {"brevity": 0.7, "detail": 0.3}, max_new_tokens=6)
    assert outcome.out == expected.strip() + "\n"


def test_flags_may_stand_before_and_after_prompts(run, trained):
    first = run("generate", trained, "--weights", WEIGHTS, *SHORT, "Hello").out
    assert run("generate", "--weights", WEIGHTS, trained, "Hello", *SHORT).out == first


def test_json_has_every_prompt_under_every_weight_vector(run, trained):
    flags = ["--weights", WEIGHTS, "--weights", "detail=1", *SHORT, "--json", "one", "two"]
    lines = run("generate", trained, *flags).out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["prompt"] for row in rows] == ["one", "one", "two", "two"]
    assert rows[0]["weights"] == pytest.approx({"brevity": 0.7, "detail": 0.3})
    assert rows[1]["weights"] == {"brevity": 0.0, "detail": 1.0}


def test_several_answers_stand_side_by_side(run, trained):
    flags = ["--weights", WEIGHTS, "--weights", "detail=1", *SHORT, "one", "two"]
    out = run("generate", trained, *flags).out
    assert out.count("brevity=0.7 detail=0.3") == 2
    assert out.count("brevity=0 detail=1") == 2


def test_a_prompt_from_standard_input(run, trained, monkeypatch):
    expected = run("generate", trained, "--weights", WEIGHTS, *SHORT, "Hello").out
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert run("generate", trained, "--weights", WEIGHTS, *SHORT, "-").out == expected


def test_seed_and_temperature(run, trained):
    command = ["generate", trained, "--weights", WEIGHTS, "--max_new_tokens", 12, "Hello"]
    assert run(*command).out == run(*command).out
    assert run(*command, "--seed", 1).out != run(*command).out
    greedy = [*command, "--temperature", 0]
    assert run(*greedy, "--seed", 1).out == run(*greedy).out


def test_a_plain_model_takes_its_objectives_from_the_weights(run, policy):
    flags = ["--weights", "b=1", "--weights", "a=0.5,b=0.5", *SHORT, "--json", "Hello"]
    rows = [json.loads(line) for line in run("generate", policy, *flags).out.splitlines()]
    assert [row["weights"] for row in rows] == [{"b": 1.0, "a": 0.0}, {"b": 0.5, "a": 0.5}]
    named = ["--objectives", "a", "b", "--weights", "b=1", *SHORT, "--json", "Hello"]
    assert json.loads(run("generate", policy, *named).out)["weights"] == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--weights", WEIGHTS], "There is no prompt"),
        (["--weights", WEIGHTS, "  "], "There is no prompt"),
        (["Hello"], "required: --weights"),
        (["--weights", "humor=1", "Hello"], "Unknown objective 'humor'"),
        (["--weights", "brevity", "Hello"], "Cannot read 'brevity'"),
        (["--weights", WEIGHTS, "--top_p", "2", "Hello"], "top_p must be"),
        (["--weights", WEIGHTS, "--temperature", "-1", "Hello"], "temperature must be"),
        (["--weights", WEIGHTS, "--max_new_tokens", "0", "Hello"], "max_new_tokens must be"),
        (["--weights", WEIGHTS, "--generation_batch_size", "0", "Hello"], "must be at least 1"),
        (["--weights", "brevity=0.7", "detail=0.3", "Hello"], "'detail=0.3' stands by itself"),
        (["--weights", "brevity=0.7,", "detail=.3", "Hello"], "Join weights by commas"),
        (["--weights", "brevity=1e308,detail=1e308", "Hello"], "more than a number can hold"),
        (["--weights", WEIGHTS, "caf\udce9"], "byte that is not UTF-8"),
        (["--weights", WEIGHTS, "--dtype", "int8", "Hello"], "invalid choice"),
    ],
)
def test_bad_input(run, trained, flags, message, monkeypatch):
    monkeypatch.setattr(SteerablePolicy, "from_pretrained", None)
    outcome = run("generate", trained, *flags)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err


def test_a_policy_and_a_prompt_may_hold_equals_signs(run, trained, tmp_path):
    link = tmp_path / "lr=1e-3"
    link.symlink_to(trained)
    outcome = run("generate", link, "--weights", WEIGHTS, *SHORT, "Solve x=3 for me.")
    assert outcome.code == 0, outcome.err
    stray = run("generate", "--weights", "brevity=0.7", "detail=0.3", trained, "Hello")
    assert "'detail=0.3' stands by itself" in stray.err


@pytest.mark.parametrize("name", ["./nope", "org/nope", "nope"])
def test_no_such_policy(run, name):
    outcome = run("generate", name, "--weights", "a=1", "Hello")
    assert outcome.code == 2
    assert name in outcome.err


def test_names_in_weights():
    assert objectives_in(["a=1,b=2", " c = 3 ,a=0", ""]) == ("a", "b", "c")
