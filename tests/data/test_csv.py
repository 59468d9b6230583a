from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tiny_files import property_settings, texts
from moodpo.data.csv import write_csv
from moodpo.data.prompts import load_prompts


def cells(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_formulas_become_text_and_numbers_stay(tmp_path: Path) -> None:
    row = {
        "=h": "=1+1", "a": "+x", "b": "-x", "c": "@x", "d": "\tx", "e": "\rx", "f": "-0.5",
        "g": -0.5, "h": 3, "i": None, "j": [{"role": "user", "content": "é"}], "k": "a=b",
        "l": "+1e-3", "m": "-", "n": "-1+1", "o": "-.5",
    }  # fmt: skip
    write_csv(tmp_path / "deep" / "out.csv", [row])
    header, written = cells(tmp_path / "deep" / "out.csv")
    assert header[0] == "'=h"
    assert written == [
        "'=1+1", "'+x", "'-x", "'@x", "'\tx", "'\rx", "-0.5",
        "-0.5", "3", "", '[{"role": "user", "content": "é"}]', "a=b",
        "+1e-3", "'-", "'-1+1", "-.5",
    ]  # fmt: skip


@given(rows=st.lists(st.tuples(texts, st.floats() | st.integers()), max_size=5))
@property_settings
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[str, float]]) -> None:
    table = [{"prompt": text, "score": score} for text, score in [("first", 0.0), *rows]]
    write_csv(tmp_path / "out.csv", table)
    # A cell with nothing but a tab is guarded too, so it is no longer empty.
    kept = [row for row in table if re.search(r"^[\t\r]|\S", str(row["prompt"]))]
    loaded = load_prompts(tmp_path / "out.csv")
    for row, prompt, score in zip(kept, loaded.prompts, loaded.dataset["score"], strict=True):
        assert prompt in (row["prompt"], f"'{row['prompt']}")
        assert isinstance(prompt, str)
        assert not re.match(r"[=@\t\r]|[+-](?![\d.])", prompt)
        assert score == str(row["score"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"prompt": "new"}
        raise KeyboardInterrupt

    write_csv(tmp_path / "out.csv", [{"prompt": "old"}])
    with pytest.raises(KeyboardInterrupt):
        write_csv(tmp_path / "out.csv", rows())
    with pytest.raises(ValueError, match=r"columns \['b'\], the header only \['a'\]"):
        write_csv(tmp_path / "out.csv", [{"a": 1}, {"a": 2, "b": 3}])
    assert cells(tmp_path / "out.csv") == [["prompt"], ["old"]]
    assert os.listdir(tmp_path) == ["out.csv"]


def test_the_header_can_be_given(tmp_path: Path) -> None:
    write_csv(tmp_path / "out.csv", [], columns=["a", "b"])
    assert cells(tmp_path / "out.csv") == [["a", "b"]]
    write_csv(tmp_path / "out.csv", [{"b": 1}, {"a": 'x"\n', "b": 0.5}], columns=["a", "b"])
    assert (tmp_path / "out.csv").read_bytes() == b'"a","b"\n"",1\n"x""\n",0.5\n'
