"""`moodpo score`: a CSV in, the same and its scores out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(
        "question,answer,id\nHow are you?,abc,007\nAnd you?,=1+1,x\n,no prompt here,y\nThen?,,z\n",
        encoding="utf-8",
    )
    return path


def score(run, table, output, *more):
    columns = ["--prompt_column", "question", "--completion_column", "answer"]
    rewards = ["--reward_models", "letters=tiny_rewards:letters", "tiny_rewards:variety"]
    return run("score", "--csv_path", table, *columns, *rewards, "--output", output, *more)


def test_scores_join_the_columns(run, table, tmp_path):
    output = tmp_path / "new" / "out.csv"
    outcome = score(run, table, output)
    assert outcome.code == 0, outcome.err
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["question", "answer", "id", "letters", "variety"]
    assert [row["question"] for row in rows] == ["How are you?", "And you?", "Then?"]
    assert [float(row["letters"]) for row in rows] == [1.0, 0.0, 0.0]
    assert [float(row["variety"]) for row in rows] == [3.0, 3.0, 0.0]
    assert rows[0]["id"] == "007"
    assert rows[1]["answer"] == "'=1+1"  # a spreadsheet must not run it
    assert "letters: mean 0.3333, std 0.4714, 3 of 3 scored" in outcome.out
    assert "empty dropped: 1" in outcome.err


def test_one_reward_is_enough_here(run, table, tmp_path):
    output = tmp_path / "out.csv"
    assert score(run, table, output, "--reward_models", "brevity").code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--completion_column", "reply"], "no column 'reply'; besides prompts it has answer, id"),
        (["--reward_models", "id=brevity"], "has a column 'id' already"),
        (["--reward_models", "nope"], "Unknown reward 'nope'"),
        (["--csv_path", "nope.csv"], "nope.csv"),
        (["--reward_models", "question=brevity"], "has a column 'question' already"),
        (["--reward_models", "prompt=brevity", "--completion_column", "no"], "no column 'no'"),
        (["--reward_models", "tiny_rewards:matches"], "'matches' needs solution, but the data"),
        (["--reward_models", "tiny_rewards:tokens"], "Only texts are known here"),
    ],
)
def test_bad_input(run, table, tmp_path, more, message):
    outcome = score(run, table, tmp_path / "out.csv", *more)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "out.csv").exists()


def test_the_input_is_not_overwritten(run, table):
    before = table.read_text()
    outcome = score(run, table, table)
    assert outcome.code == 2
    assert "is the input" in outcome.err
    assert table.read_text() == before


@pytest.mark.parametrize("place", ["", "scores.jsonl", "in.csv/scores.csv", "scores"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_scored(
    run, table, tmp_path, monkeypatch, place
):
    monkeypatch.setattr("moodpo.cli.score.load_prompts", None)
    outcome = score(run, table, tmp_path / place)
    assert outcome.code == 2, outcome.err
    assert f"--output {tmp_path / place}" in outcome.err


def test_scores_that_exist_are_replaced_whatever_the_input_is(run, table, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    output.write_text("old")
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = score(run, "~/in.csv", "~/out.csv")
    assert outcome.code == 0, outcome.err
    assert output.read_text().startswith('"question"')
    outcome = score(run, "org/dataset", output)  # offline: the Hub is asked, in vain
    assert outcome.code == 2
    assert "the Hub dataset 'org/dataset'" in outcome.err
    outcome = score(run, table.with_name("in.csvv"), output)
    assert "Did you mean 'in.csv'" in outcome.err


def test_a_column_that_was_renamed_while_reading_is_taken_too(run, tmp_path):
    table = tmp_path / "posts.csv"
    table.write_text("prompt,post,summary\nP,Post.,Sum.\n")
    flags = ["--prompt_column", "post", "--completion_column", "summary"]
    flags += ["--csv_path", table, "--output", tmp_path / "out.csv", "--reward_models"]
    for name in ("prompt", "post", "original_prompt", "summary"):
        outcome = run("score", *flags, f"{name}=brevity")
        assert outcome.code == 2
        assert f"has a column '{name}' already" in outcome.err
    assert not (tmp_path / "out.csv").exists()


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


ASKED = [{"role": "user", "content": "And?"}]


@pytest.mark.parametrize(
    ("prompt", "completion", "shown"),
    [
        ("Hi", "abc", None),
        ("Hi", said("abc"), None),
        (ASKED, said("abc"), None),
        (ASKED, "abc", None),
        ("Hi", None, "None"),
        ("Hi", 7, "7"),
        ("Hi", [], r"[]"),
        ("Hi", ["abc"], "['abc']"),
        ("Hi", {"role": "assistant", "content": "abc"}, "{'content': 'abc', 'role': 'assistant'}"),
        ("Hi", [{"role": "user", "content": "abc"}], "[{'content': 'abc', 'role': 'user'}]"),
        ("Hi", [{"role": "assistant", "content": None}], "[{'content': None"),
        ("Hi", [*said("abc"), *said("d")], "[{'content': 'abc'"),
    ],
)
def test_completions_are_text_or_one_message(run, tmp_path: Path, prompt, completion, shown):
    table, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    row = {"prompt": prompt, "completion": completion}
    table.write_text("\n".join(json.dumps(row) for _ in range(2)))
    rewards = ["tiny_rewards:spoken", "brevity"]
    outcome = run("score", "--csv_path", table, "--output", output, "--reward_models", *rewards)
    if shown is not None:
        assert outcome.code == 2
        assert f"row 1: the completion is {shown}" in outcome.err
        assert not output.exists()
        return
    assert outcome.code == 0, outcome.err
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["spoken"]) for row in rows] == [3.0, 3.0]
    assert [float(row["brevity"]) for row in rows] == pytest.approx([1 / 6] * 2, abs=1e-6)


def test_a_completion_that_is_no_text_is_named_by_its_row(run, tmp_path):
    table = tmp_path / "in.jsonl"
    rows = [("Hi", "abc"), (None, None), ("Hi", None)]
    table.write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in rows))
    flags = ["--csv_path", table, "--output", tmp_path / "out.csv", "--reward_models", "brevity"]
    outcome = run("score", *flags)
    assert outcome.code == 2
    assert "row 2 of those with a prompt: the completion is None" in outcome.err
