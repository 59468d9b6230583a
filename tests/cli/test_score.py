"""`moodpo score`: a CSV in, the same and its scores out."""

from __future__ import annotations

import csv

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
