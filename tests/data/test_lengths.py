"""Prompts fit beside their longest weight instruction; what is cut is the user's text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tiny_files import lines_of, property_settings, put, user
from moodpo.conditioning.instruction import Conditioner
from moodpo.data.csv import write_csv
from moodpo.data.lengths import (
    check_lengths,
    filter_long_prompts,
    fit_prompts,
    longest_instruction,
    max_positions,
    truncate_prompt,
)
from moodpo.data.prompts import LoadedPrompts, load_prompts
from moodpo.errors import ConfigError, DataError
from moodpo.records import Prompt
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
    return load_prompts(path)


def length(prompt, weights=None):
    weights = weights or longest_instruction(CONDITIONER, TOKENIZER)
    return len(CONDITIONER.encode(TOKENIZER, prompt, weights))


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
    loaded = load_prompts(path)
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


# Dropping and cutting, whatever a length is


def loaded_from(tmp_path: Path, *prompts: str) -> LoadedPrompts:
    rows = [{"prompt": prompt, "id": number} for number, prompt in enumerate(prompts)]
    write_csv(tmp_path / "long.csv", rows)
    return load_prompts(tmp_path / "long.csv")


def words(prompt: Prompt) -> int:
    """A stand-in for tokens: two words of instruction, then the prompt's."""
    assert isinstance(prompt, str)
    return 2 + len(prompt.split())


def first_words(prompt: Prompt, limit: int) -> Prompt:
    assert isinstance(prompt, str)
    assert words(prompt) > limit
    return " ".join(prompt.split()[: limit - 2])


def test_long_prompts_are_dropped(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path, "a b c", "a", "a b c d", "a b c", "a b")
    short = filter_long_prompts(loaded, words, max_prompt_length=4, overflow="drop")
    assert short.prompts == ["a", "a b"]
    assert short.dataset["id"][:] == ["1", "4"]
    assert str(short.report).endswith("kept 2 of 5 prompts (too long dropped: 3)")
    assert loaded.prompts[0] == "a b c"


def test_long_prompts_are_truncated(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path, "a b c", "a", "a b c d")
    cut = filter_long_prompts(
        loaded, words, max_prompt_length=4, overflow="truncate", truncate=first_words
    )
    assert cut.prompts == ["a b", "a", "a b"]
    assert cut.dataset["id"][:] == ["0", "1", "2"]
    assert (cut.report.too_long_truncated, cut.report.duplicates, cut.report.kept) == (2, 1, 3)


def test_conversations_are_truncated(tmp_path: Path) -> None:
    path = put(tmp_path / "p.jsonl", lines_of([user("hello")], [user("a")]))

    def length(prompt: Prompt) -> int:
        return sum(len(turn["content"]) for turn in prompt if not isinstance(turn, str))

    cut = filter_long_prompts(
        load_prompts(path),
        length,
        max_prompt_length=4,
        overflow="truncate",
        truncate=lambda prompt, limit: [{"role": "user", "content": "hello"[:limit]}],
    )
    assert cut.prompts == [[user("hell")], [user("a")]]


def test_nothing_changes_when_all_fit(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path, "a b", "c")
    assert filter_long_prompts(loaded, words, max_prompt_length=4, overflow="drop") is loaded


def test_when_nothing_fits_the_lengths_are_said(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path, "a b c", "a b c d e")
    with pytest.raises(DataError, match=r"shortest has 5 and the longest 7.* at least 5"):
        filter_long_prompts(loaded, words, max_prompt_length=4, overflow="drop")
    with pytest.raises(DataError, match="cannot be cut to max_prompt_length = 2 tokens"):
        filter_long_prompts(
            loaded, words, max_prompt_length=2, overflow="truncate", truncate=first_words
        )
    with pytest.raises(DataError, match="5 are left"):
        filter_long_prompts(
            loaded, words, max_prompt_length=4, overflow="truncate", truncate=lambda p, _: p
        )


@pytest.mark.parametrize(
    ("limit", "overflow", "said"),
    [(0, "drop", "max_prompt_length is 0"), (4, "cut", "'cut'"), (4, "truncate", "no truncate")],
)
def test_filter_settings_are_checked(tmp_path: Path, limit: int, overflow: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        filter_long_prompts(
            loaded_from(tmp_path, "a"), words, max_prompt_length=limit, overflow=overflow
        )


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    limit=st.integers(3, 9),
)
@property_settings
def test_what_is_left_fits(tmp_path: Path, lengths: list[int], limit: int) -> None:
    prompts = ["a", *(" ".join("abcdef"[:length]) for length in lengths)]
    loaded = loaded_from(tmp_path, *prompts)
    kept = filter_long_prompts(loaded, words, max_prompt_length=limit, overflow="drop")
    assert kept.prompts == [prompt for prompt in prompts if words(prompt) <= limit]
    assert kept.report.kept == kept.report.rows_read - kept.report.too_long_dropped
    cut = filter_long_prompts(
        loaded, words, max_prompt_length=limit, overflow="truncate", truncate=first_words
    )
    assert len(cut) == len(prompts)
    assert max(words(prompt) for prompt in cut.prompts) <= limit
