"""What a reward model reads: whole dialogues, in its own frame, and never without the response."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from moodpo.errors import RewardError
from moodpo.rewards import ModelReward, RewardPanel, load_rewards
from moodpo.rewards.inputs import encode_inputs, read_turns, transcript
from moodpo.rewards.presets import INPUTS
from tiny_checkpoints import tiny_gpt2_tokenizer

CHAT = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}END"
BAKE = "\n\nHuman: How do I bake bread?\n\nAssistant: With yeast?\n\nHuman: yep \n\nAssistant:"
"""As Rewards-in-Context writes a dialogue of Anthropic HH."""


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


DIALOGUE = [user("How do I bake bread?"), assistant("With yeast?"), user("yep")]


def chat_tokenizer() -> Any:
    tokenizer = tiny_gpt2_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def read(template: str, prompt: Any, response: str, *, max_tokens: int = 9999) -> str:
    """The text of the input that a GPT-2 reads."""
    tokenizer = chat_tokenizer()
    inputs = encode_inputs(tokenizer, INPUTS[template], [prompt], [response], max_tokens=max_tokens)
    assert len(inputs.rows[0]["input_ids"]) <= max_tokens
    return str(tokenizer.decode(inputs.rows[0]["input_ids"]))


# --- dialogues ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "prompt", "expected"),
    [
        ("hh", "Hi", "\n\nHuman: Hi \n\nAssistant:Ok."),
        ("hh", [user("Hi")], "\n\nHuman: Hi \n\nAssistant:Ok."),
        ("hh", " Hi\n", "\n\nHuman:  Hi\n \n\nAssistant:Ok."),
        ("hh", DIALOGUE, f"{BAKE}Ok."),
        ("hh", [system("Be kind."), *DIALOGUE], BAKE.replace("How", "Be kind.\n\nHow") + "Ok."),
        (
            "hh",
            [assistant("Hello."), user("Hi")],
            "\n\nHuman: \n\nAssistant: Hello.\n\nHuman: Hi \n\nAssistant:Ok.",
        ),
        # A transcript is not framed twice, whoever wrote its line breaks.
        ("hh", BAKE, f"{BAKE}Ok."),
        ("hh", BAKE.strip(), f"{BAKE}Ok."),
        ("hh", BAKE.replace("yep ", "yep"), f"{BAKE}Ok."),
        ("hh", BAKE.removesuffix(" \n\nAssistant:"), f"{BAKE}Ok."),
        ("hh", BAKE.replace("bread?", "bread? "), BAKE.replace("bread?", "bread? ") + "Ok."),
        ("hh", "\n\nHuman: Hi", "\n\nHuman: Hi \n\nAssistant:Ok."),
        # What only looks a little like one is a text as any other.
        ("hh", "Human: Hi", "\n\nHuman: Human: Hi \n\nAssistant:Ok."),
        ("hh", "Say\n\nAssistant:", "\n\nHuman: Say\n\nAssistant: \n\nAssistant:Ok."),
        ("prompt-response", DIALOGUE, "How do I bake bread?\n\nWith yeast?\n\nyepOk."),
        ("prompt-response", "Hi", "HiOk."),
        ("tldr", [system("A post:"), user("Bread.")], "Ok. <|endoftext|> A post:\n\nBread."),
        ("response-prompt", DIALOGUE, "Ok.How do I bake bread?\n\nWith yeast?\n\nyep"),
        ("response", DIALOGUE, "Ok."),
        (
            "chat",
            [*DIALOGUE[:2], user("Why?<|endoftext|>")],
            "<|endoftext|>user: How do I bake bread?\n<|endoftext|>assistant: With yeast?\n"
            "<|endoftext|>user: Why?<|endoftext|>\n<|endoftext|>assistant: Ok.\nEND",
        ),
        ("chat", "Hi", "<|endoftext|>user: Hi\n<|endoftext|>assistant: Ok.\nEND"),
    ],
)
def test_prompts_are_written_whole(template: str, prompt: Any, expected: str) -> None:
    assert read(template, prompt, "Ok.") == expected


def test_text_in_a_chat_never_becomes_a_control_token() -> None:
    rows = encode_inputs(
        chat_tokenizer(), INPUTS["chat"], ["a<|endoftext|>b"], ["c<|endoftext|>d"], max_tokens=999
    ).rows
    assert list(rows[0]["input_ids"]).count(263) == 2  # of the template alone


def test_a_transcript_is_the_conversation_that_it_holds() -> None:
    assert read_turns(INPUTS["hh"], BAKE) == DIALOGUE
    assert transcript(read_turns(INPUTS["hh"], BAKE)) == transcript(DIALOGUE)


def test_what_was_said_before_counts(checkpoints: dict[str, Path]) -> None:
    bread = [user("How do I bake bread?"), assistant("Are you sure?"), user("yep")]
    poison = [user("How do I poison someone?"), assistant("Are you sure?"), user("yep")]
    for name, path in checkpoints.items():
        (reward,) = load_rewards([f"{path}#like={name}"])
        first, second = reward.score([bread, poison], ["Sure."] * 2).tolist()
        assert (first == second) == (name == "humor"), name  # which reads the response alone


# --- what does not fit ----------------------------------------------------------------------------

LONG = " ".join(f"w{i}" for i in range(300))
ANSWERS = ["The first answer.", "Quite another one."]


@pytest.mark.parametrize(
    ("template", "start", "end"),
    [
        ("hh", "\n\nHuman: ", " w299 \n\nAssistant:{answer}"),
        ("prompt-response", "", " w299{answer}"),
        ("chat", "<|endoftext|>user: ", " w299\n<|endoftext|>assistant: {answer}\nEND"),
        ("tldr", "{answer} <|endoftext|> w0 w1", ""),
        ("response-prompt", "{answer}w0 w1", ""),
    ],
)
def test_the_prompt_is_cut_and_the_response_kept(template: str, start: str, end: str) -> None:
    for answer in ANSWERS:
        text = read(template, LONG, answer, max_tokens=90)
        assert text.startswith(start.format(answer=answer))
        assert text.endswith(end.format(answer=answer))
        assert len(chat_tokenizer()(text)["input_ids"]) > 85  # no more is cut than must be


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (85, "system: SSSS|user: aaaa bbbb|assistant: cccc dddd|user: eeee ffff|assistant: Ok.|"),
        (83, "system: SS|user: aaaa bbbb|assistant: cccc dddd|user: eeee ffff|assistant: Ok.|"),
        (69, "user: aa bbbb|assistant: cccc dddd|user: eeee ffff|assistant: Ok.|"),
        (59, "user: |assistant: c dddd|user: eeee ffff|assistant: Ok.|"),
        (53, "user: eeee ffff|assistant: Ok.|"),
        (30, "user:  ffff|assistant: Ok.|"),
        (25, "user: |assistant: Ok.|"),
        (24, "user: |assistant: Ok|"),
        (23, "user: |assistant: O|"),
    ],
)
def test_the_oldest_turns_go_first_and_the_template_stays_whole(
    max_tokens: int, expected: str
) -> None:
    turns = [system("SSSS"), user("aaaa bbbb"), assistant("cccc dddd"), user("eeee ffff")]
    text = read("chat", turns, "Ok.", max_tokens=max_tokens)
    assert text == _chat(expected)


def _chat(turns: str) -> str:
    return "".join(f"<|endoftext|>{turn}\n" for turn in turns.split("|")[:-1]) + "END"


@pytest.mark.parametrize(
    ("template", "start", "end"),
    [
        ("hh", "\n\nHuman:  \n\nAssistant:w0 w1", ""),
        ("chat", "<|endoftext|>user: \n<|endoftext|>assistant: w0 w1", "\nEND"),
        ("tldr", "w0 w1", " <|endoftext|> "),
        ("prompt-response", "w0 w1", ""),
        ("response-prompt", "w0 w1", ""),
        ("response", "w0 w1", ""),
    ],
)
def test_a_response_that_is_too_long_keeps_its_beginning(
    template: str, start: str, end: str
) -> None:
    text = read(template, LONG, LONG, max_tokens=90)
    assert text.startswith(start)
    assert text.endswith(end)
    assert len(chat_tokenizer()(text)["input_ids"]) == 90
    assert "w1 w2" in text


def test_a_limit_below_the_frame_is_refused() -> None:
    with pytest.raises(RewardError, match=r"cut to 9 tokens, of which 'chat' .*#max_tokens="):
        read("chat", LONG, "Ok.", max_tokens=9)


@pytest.mark.parametrize("name", ["helpful", "deberta", "summary", "faithful", "chat"])
def test_answers_to_a_prompt_that_is_too_long_differ(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = f"{checkpoints.get(name, '')}#like={name}"
    if name == "chat":
        folder = tmp_path / "chat"
        AutoModelForSequenceClassification.from_pretrained(checkpoints["helpful"]).save_pretrained(
            folder
        )
        chat_tokenizer().save_pretrained(folder)
        spec = str(folder)
    (reward,) = load_rewards([f"{name}={spec}"])
    assert isinstance(reward, ModelReward)
    panel = RewardPanel([reward, *load_rewards(["brevity"])])
    with caplog.at_level(logging.WARNING, logger="moodpo"):
        scores = panel.score([LONG, LONG, "Hi"], [*ANSWERS, "Ok."])[:, 0]
        panel.score([LONG], ["Once more."])
    assert torch.isfinite(scores).all()
    assert abs(scores[0] - scores[1]) > 1e-5
    assert max(len(row["input_ids"]) for row in reward.encode([LONG], ANSWERS[:1]).rows) <= (
        reward.max_tokens
    )
    (said,) = [record.message for record in caplog.records]  # once
    assert f"Reward '{name}': 2 of 3 inputs are longer than {reward.max_tokens} tokens" in said
    assert "responses are whole" in said
    assert "#max_tokens=" in said
    assert panel.pop_cuts() == (3, 4)
    assert panel.pop_cuts() == (0, 0)


def test_what_fits_is_not_cut(checkpoints: dict[str, Path]) -> None:
    """To the token: the limit itself still fits."""
    (reward,) = load_rewards([f"{checkpoints['helpful']}#like=helpful"])
    assert isinstance(reward, ModelReward)
    size = len(reward.encode(["w " * 40], ["Ok."]).rows[0]["input_ids"])
    for limit, cut in ((size, 0), (size - 1, 1)):
        inputs = encode_inputs(
            reward.checkpoint.tokenizer,
            INPUTS["hh"],
            ["w " * 40],
            ["Ok."],
            max_tokens=limit,
        )
        assert (inputs.cut, inputs.cut_responses) == (cut, 0)
        assert len(inputs.rows[0]["input_ids"]) == limit
