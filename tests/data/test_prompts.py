from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tiny_files import CONVERSATION, lines_of, property_settings, put, refusal, user
from moodpo.data.prompts import DataReport, embedded_prompts, load_prompts
from moodpo.errors import ConfigError, DataError

# Conversations


def test_conversations_are_kept_whole(tmp_path: Path) -> None:
    named = [{**user("Hey"), "name": "Ann"}]
    path = put(tmp_path / "p.jsonl", lines_of(CONVERSATION, [], [user("  ")], named, CONVERSATION))
    loaded = load_prompts(path)
    assert loaded.prompts == [CONVERSATION, [user("Hey")], CONVERSATION]
    assert (loaded.report.empty_dropped, loaded.report.duplicates) == (2, 1)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([user("a"), {"role": "assistant", "content": "b"}], "ends with a turn of the assistant"),
        ([user("a"), {"role": "system", "content": "b"}], "ends with a turn of the system"),
        (
            [{"from": "human", "value": "a"}],
            "turn 1 has the role None and the keys 'from', 'value'",
        ),
        ([user([{"type": "text", "text": "a"}])], "turn 1 has the content"),
        ([user(None)], "turn 1 has the content None"),
        (["a"], "turn 1 is 'a'"),
        ([user("a\0")], "NUL"),
        ([user("\ud800")], "surrogate"),
        ("a\0b", "NUL"),
        ("ab\udfff", "character 3"),
        (7, "the prompt is 7 (int)"),
        (True, "(bool)"),
        ({"a": 1}, "(dict)"),
        ("text among conversations", "mixed"),
    ],
)
def test_an_unusable_prompt_names_its_line(tmp_path: Path, prompt: object, said: str) -> None:
    message = refusal(put(tmp_path / "p.jsonl", lines_of([user("fine")], prompt)))
    assert "p.jsonl, line 2:" in message
    assert said in message


def test_conversations_in_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"messages": [CONVERSATION, None]}), tmp_path / "p.parquet")
    loaded = load_prompts(tmp_path / "p.parquet", prompt_column="messages")
    assert loaded.prompts == [CONVERSATION]


def test_numbers_in_parquet_are_not_prompts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "p.parquet")
    assert "row 1: the prompt is 1 (int)" in refusal(tmp_path / "p.parquet")


# Cleaning and counting


def test_empty_rows_are_dropped_and_duplicates_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "p.csv", 'prompt,id\nb,0\n\n" \t ",1\na,2\nb,3\n\u2003,4\nb,5\n')
    loaded = load_prompts(path)
    assert loaded.prompts == ["b", "a", "b", "b"]
    assert loaded.dataset["id"][:] == ["0", "2", "3", "5"]
    assert loaded.report == DataReport(
        source=str(path), rows_read=7, empty_dropped=3, duplicates=2, kept=4
    )
    assert len(loaded) == 4


def test_the_report_is_one_line() -> None:
    full = DataReport(
        source="p.csv",
        rows_read=9,
        empty_dropped=1,
        duplicates=2,
        too_long_dropped=3,
        too_long_truncated=4,
        kept=5,
    )
    assert str(full) == (
        "p.csv: kept 5 of 9 prompts (empty dropped: 1, too long dropped: 3, "
        "too long truncated: 4, duplicates kept: 2)"
    )
    plain = DataReport(source="a\nb.csv", rows_read=2, empty_dropped=0, duplicates=0, kept=2)
    assert str(plain) == "'a\\nb.csv': kept 2 of 2 prompts"


def test_max_samples_takes_the_first_prompts(tmp_path: Path) -> None:
    path = put(tmp_path / "p.csv", "prompt\na\n\nb\n\na\n")
    loaded = load_prompts(path, max_samples=2)
    assert loaded.prompts == ["a", "b"]
    assert (loaded.report.rows_read, loaded.report.empty_dropped) == (3, 1)
    assert load_prompts(path, max_samples=99).report == load_prompts(path).report
    with pytest.raises(ConfigError, match="max_samples is 0"):
        load_prompts(path, max_samples=0)


@given(
    rows=st.lists(st.sampled_from(["", " ", "a", "b", "c"]), min_size=1),
    limit=st.none() | st.integers(1, 8),
)
@property_settings
def test_the_report_adds_up(tmp_path: Path, rows: list[str], limit: int | None) -> None:
    path = put(tmp_path / "p.csv", "\n".join(["prompt", "a", *rows, ""]))
    loaded = load_prompts(path, max_samples=limit)
    report = loaded.report
    assert report.kept == len(loaded.dataset) == report.rows_read - report.empty_dropped
    assert report.kept - report.duplicates == len(set(loaded.prompts))
    assert loaded.prompts == [row for row in ["a", *rows] if row.strip()][:limit]


def test_another_column_named_prompt_is_kept(tmp_path: Path) -> None:
    path = put(tmp_path / "p.csv", "prompt,question\nold,new\n")
    loaded = load_prompts(path, prompt_column="question")
    assert loaded.prompts == ["new"]
    assert loaded.dataset["original_prompt"][:] == ["old"]
    crowded = put(tmp_path / "c.csv", "prompt,question,original_prompt\na,b,c\n")
    assert "Rename one of them" in refusal(crowded, prompt_column="question")


def test_unnamed_columns_are_called_by_their_position(tmp_path: Path) -> None:
    loaded = load_prompts(put(tmp_path / "p.csv", ",prompt\n0,a\n"))
    assert loaded.dataset.column_names == ["prompt", "column_1"]


# What ships


KINDS = {"question", "request", "feeling", "opinion", "task", "explanation", "writing"}


def shipped(split: Literal["train", "heldout"]) -> list[str]:
    return [str(prompt) for prompt in load_prompts(embedded_prompts(split)).prompts]


def normalized(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def grams(text: str) -> frozenset[str]:
    plain = normalized(text)
    return frozenset(plain[i : i + 4] for i in range(len(plain) - 3))


@pytest.mark.parametrize(("split", "at_least"), [("train", 440), ("heldout", 72)])
def test_embedded_prompts_are_many_and_short(
    split: Literal["train", "heldout"], at_least: int
) -> None:
    loaded = load_prompts(embedded_prompts(split))
    assert loaded.report.kept == loaded.report.rows_read >= at_least
    assert loaded.dataset.column_names == ["prompt", "kind"]
    kinds: Sequence[str] = loaded.dataset["kind"][:]
    assert set(kinds) == KINDS
    assert min(kinds.count(kind) for kind in KINDS) >= at_least // 8
    for prompt in shipped(split):
        assert 4 <= len(prompt.split()) <= 20, prompt
        assert prompt.isascii()
        assert prompt == prompt.strip()
        assert prompt[0].isupper()


def test_no_embedded_prompt_repeats_another() -> None:
    prompts = shipped("train") + shipped("heldout")
    assert len({normalized(prompt) for prompt in prompts}) == len(prompts)
    for (one, a), (other, b) in combinations([(p, grams(p)) for p in prompts], 2):
        assert len(a & b) <= 0.5 * len(a | b), (one, other)


def test_there_is_no_third_split() -> None:
    with pytest.raises(DataError, match="'train' or 'heldout'"):
        embedded_prompts("test")  # type: ignore[arg-type]


def test_importing_the_module_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'numpy'}"
    code = f"import sys, moodpo.data.prompts; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
