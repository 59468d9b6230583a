"""Prompts fit beside their longest weight instruction; what is cut is the user's text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moodpo.cli.prompts import read_prompts
from moodpo.conditioning.instruction import Conditioner
from moodpo.data.lengths import (
    check_lengths,
    fit_prompts,
    longest_instruction,
    max_positions,
    truncate_prompt,
)
from moodpo.errors import ConfigError, DataError
from tiny_policies import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # one token per byte
CONDITIONER = Conditioner(
    objectives=("helpful", "harmless"),
    weight_format="verbal",
    prompt_template="Summarize: {prompt} TL;DR:",
)


def load(tmp_path, *rows):
    path = tmp_path / "p.csv"
    path.write_text("\n".join(["prompt", *rows]) + "\n", encoding="utf-8")
    return read_prompts(str(path), column="prompt", embedded="train")


def length(prompt, weights=None):
    weights = weights or longest_instruction(CONDITIONER, TOKENIZER)
    return len(CONDITIONER.encode(TOKENIZER, prompt, weights))


def test_embedded_prompts_and_files(tmp_path):
    train = read_prompts("embedded", column="anything", embedded="train")
    held_out = read_prompts("embedded", column="anything", embedded="heldout")
    assert len(train) > len(held_out) > 0
    assert not set(train.prompts) & set(held_out.prompts)
    assert load(tmp_path, "one", "two").prompts == ["one", "two"]
    path = tmp_path / "p.csv"
    limited = read_prompts(str(path), column="prompt", embedded="train", max_samples=1)
    assert limited.prompts == ["one"]


def test_the_longest_instruction_bounds_all_others():
    longest = length("x")
    for step in range(21):
        weights = (step / 20, 1 - step / 20)
        assert length("x", weights) <= longest
    assert length("x", (0.5, 0.5)) < longest  # they do differ


def test_many_objectives_are_probed_too():
    many = Conditioner(objectives=tuple("abcdefghijklmnopqrstuvwxyzABCDEF"))
    assert len(longest_instruction(many, TOKENIZER)) == 32


@pytest.mark.parametrize("slack", [0, 1])
def test_dropping_counts_the_instruction(tmp_path, slack):
    loaded = load(tmp_path, "short", "a longer prompt")
    limit = length("a longer prompt") - 1 + slack
    fitted = fit_prompts(loaded, CONDITIONER, TOKENIZER, max_prompt_length=limit, overflow="drop")
    assert fitted.prompts == (["short", "a longer prompt"] if slack else ["short"])
    assert fitted.report.too_long_dropped == 1 - slack


def test_truncation_cuts_the_users_text_and_keeps_instruction_and_frame(tmp_path):
    loaded = load(tmp_path, "short", "0123456789 " * 30)
    limit = length("0123456789 01234")
    fitted = fit_prompts(
        loaded, CONDITIONER, TOKENIZER, max_prompt_length=limit, overflow="truncate"
    )
    assert fitted.prompts == ["short", "0123456789 01234"]
    assert fitted.report.too_long_truncated == 1
    weights = longest_instruction(CONDITIONER, TOKENIZER)
    text = TOKENIZER.decode(CONDITIONER.encode(TOKENIZER, fitted.prompts[1], weights))
    assert CONDITIONER.instruction(weights) in text
    assert "Summarize: 0123456789 01234 TL;DR:" in text


def test_no_room_for_any_text_is_refused(tmp_path):
    loaded = load(tmp_path, "some text")
    for overflow in ("drop", "truncate"):
        with pytest.raises(DataError, match="max_prompt_length"):
            fit_prompts(loaded, CONDITIONER, TOKENIZER, max_prompt_length=20, overflow=overflow)


@given(text=st.text(min_size=1, max_size=60), room=st.integers(0, 60))
def test_truncation_is_the_longest_beginning_that_fits(text, room):
    shorter = truncate_prompt(text, lambda prompt: len(prompt) <= room)
    assert shorter == text[:room].rstrip()


def test_a_conversation_loses_the_end_of_its_last_turn_only():
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "abcdef"},
    ]
    shorter = truncate_prompt(turns, lambda prompt: len(prompt[-1]["content"]) <= 3)
    assert shorter == [*turns[:2], {"role": "user", "content": "abc"}]
    assert turns[-1]["content"] == "abcdef"


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"n_positions": 64}, 64),
        ({"max_position_embeddings": 128}, 128),
        ({"text_config": {"max_position_embeddings": 256}}, 256),
        ({"text_config": None, "n_positions": 64}, 64),
        ({"max_position_embeddings": -1}, None),  # relative positions: there is no limit
        ({}, None),
    ],
)
def test_lengths_must_leave_room(config, limit):
    assert max_positions(config) == limit
    if limit is None:
        return check_lengths("m", None, max_prompt_length=10**6, max_new_tokens=1)
    check_lengths("m", limit, max_prompt_length=limit - 8, max_new_tokens=8)
    with pytest.raises(ConfigError, match=f"m has {limit} pos.*max_prompt_length to {limit - 8}"):
        check_lengths("m", limit, max_prompt_length=limit - 7, max_new_tokens=8)
    with pytest.raises(ConfigError, match=f"max_new_tokens below {limit}"):
        check_lengths("m", limit, max_prompt_length=1, max_new_tokens=limit)
    return None


ALTERNATING = (
    "{% for m in messages %}{% if m.role == messages[loop.index0 - 1].role and loop.index0 %}"
    "{{ raise_exception('Roles must alternate.') }}{% endif %}{{ m.role }}: {{ m.content }}\n"
    "{% endfor %}"
)


def test_a_template_that_refuses_a_conversation_names_its_row(tmp_path):
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    path = tmp_path / "p.jsonl"
    rows = [[], [{"role": "user", "content": "fine"}], twice]
    path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    loaded = read_prompts(str(path), column="prompt", embedded="train")
    tokenizer = tiny_tokenizer(ALTERNATING)
    said = (
        r"p\.jsonl, line 3: the policy's chat template refuses .*Roles must alternate.*user, user"
    )
    with pytest.raises(DataError, match=said):
        fit_prompts(loaded, CONDITIONER, tokenizer, max_prompt_length=500, overflow="drop")


def test_prompts_that_fit_are_not_measured_again(tmp_path, monkeypatch):
    loaded = load(tmp_path, "short", "0123456789 " * 30)
    settings = {"max_prompt_length": length("short"), "overflow": "truncate"}
    fitted = fit_prompts(loaded, CONDITIONER, TOKENIZER, **settings)
    assert fitted.report.too_long_truncated == 1
    wider = fit_prompts(fitted, CONDITIONER, TOKENIZER, **{**settings, "max_prompt_length": 900})
    assert wider.prompts == fitted.prompts
    monkeypatch.setattr("moodpo.data.lengths.filter_long_prompts", None)
    assert fit_prompts(fitted, CONDITIONER, TOKENIZER, **settings) is fitted
    with pytest.raises(TypeError):  # another limit is another question
        fit_prompts(fitted, CONDITIONER, TOKENIZER, max_prompt_length=20, overflow="truncate")
