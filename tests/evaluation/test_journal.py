from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moodpo.evaluation.journal import ScoredAnswer, SweepJournal, fingerprint

FIRST = ScoredAnswer(
    phase="policy",
    row=0,
    completion="a\nb \u2028 ü",
    length=3,
    rewards=(0.1, 2.0),
    token_ids=(5, 6, 2),
    finished=True,
)
SECOND = ScoredAnswer(
    phase="baseline", row=1, completion="", length=0, rewards=(math.nan,), held_out=(1.5,), kl=0.25
)


def same(a: ScoredAnswer, b: ScoredAnswer) -> bool:
    return repr(a) == repr(b)  # NaN is equal to itself here


def test_answers_come_back(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = SweepJournal(path, fingerprint="x")
    journal.append([FIRST])
    journal.append([SECOND])
    again = SweepJournal(path, fingerprint="x")
    assert same(again.answers["policy", 0], FIRST)
    assert same(again.answers["baseline", 1], SECOND)
    assert ("policy", 0) in again
    assert ("policy", 1) not in again


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = SweepJournal(None, fingerprint="x")
    journal.append([FIRST])
    assert ("policy", 0) in journal
    assert not os.listdir(tmp_path)


def test_appending_never_rewrites(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = SweepJournal(path, fingerprint="x")
    journal.append([FIRST])
    before = path.read_bytes()
    journal.append([SECOND])
    assert path.read_bytes().startswith(before)


def test_the_folder_is_made(tmp_path):
    SweepJournal(tmp_path / "new" / "journal.jsonl", fingerprint="x").append([FIRST])
    assert (tmp_path / "new" / "journal.jsonl").exists()


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_cut_last_line_costs_one_answer(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    journal = SweepJournal(path, fingerprint="x")
    journal.append([FIRST, SECOND])
    path.write_bytes(path.read_bytes()[:-cut])
    again = SweepJournal(path, fingerprint="x")
    assert list(again.answers) == [("policy", 0)]
    again.append([SECOND])
    assert len(SweepJournal(path, fingerprint="x").answers) == 2


@pytest.mark.parametrize(
    "damage",
    ["garbage", "[1]", "null", '{"phase": "policy"}', '{"rewards": 3, "held_out": []}', ""],
)
def test_a_damaged_line_is_dropped_and_the_rest_kept(tmp_path, damage):
    path = tmp_path / "journal.jsonl"
    SweepJournal(path, fingerprint="x").append([FIRST, SECOND])
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, first, damage, second, ""]))
    again = SweepJournal(path, fingerprint="x")
    assert set(again.answers) == {("policy", 0), ("baseline", 1)}
    assert path.read_text().splitlines() == [header, first, second]


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff", b"not a journal\n"])
def test_a_file_of_another_sweep_is_replaced_with_a_warning(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    if content is None:
        SweepJournal(path, fingerprint="other").append([FIRST])
    else:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="another sweep"):
        journal = SweepJournal(path, fingerprint="x")
    assert not journal.answers
    assert json.loads(path.read_text())["fingerprint"] == "x"


def test_a_journal_without_tokens_starts_anew(tmp_path):
    path = tmp_path / "journal.jsonl"
    SweepJournal(path, fingerprint="x").append([FIRST])
    header, answer = path.read_text().splitlines()
    values = json.loads(answer)
    del values["token_ids"], values["finished"]
    older = [{**json.loads(header), "version": 1}, values]
    path.write_text("".join(json.dumps(line) + "\n" for line in older))
    with pytest.warns(UserWarning, match="another version of moodpo; starting anew"):
        assert not SweepJournal(path, fingerprint="x").answers


def test_a_header_cut_short_starts_anew(tmp_path):
    path = tmp_path / "journal.jsonl"
    SweepJournal(path, fingerprint="x")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="starting anew"):
        assert not SweepJournal(path, fingerprint="x").answers


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)), st.integers(4, 9))
def test_a_fingerprint_changes_with_any_part(parts, other):
    assert fingerprint(x=parts) == fingerprint(x=dict(reversed(list(parts.items()))))
    assert fingerprint(x=parts) != fingerprint(x={**parts, "a": other})
    assert fingerprint(x=parts) != fingerprint(y=parts)


def test_a_fingerprint_is_stable_across_runs():
    assert fingerprint(weights=[[0.5, 0.5]], seed=1).startswith("65736350a8b57ecb")
