"""`moodpo rewards`: everything that goes by name."""

from __future__ import annotations

import json

from moodpo.rewards import kinds, list_presets
from tiny_kinds import CountKind


def test_the_table_names_every_reward(run):
    outcome = run("rewards")
    assert outcome.code == 0
    for row in list_presets():
        assert f" {row.name} " in outcome.out


def test_json_is_the_list(run):
    rows = json.loads(run("rewards", "--json").out)
    assert [row["name"] for row in rows] == [row.name for row in list_presets()]
    assert {"helpful", "harmless", "humor", "summary", "faithful"} <= {r["name"] for r in rows}
    assert rows[0]["spec"].startswith("Ray2333/")


def test_a_further_kind_is_listed_and_scores_a_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", (CountKind(), *kinds.KINDS))
    listed = run("rewards").out
    assert " es " in listed
    assert "count:e" in listed
    assert "a letter (count:letter)" in " ".join(listed.split())
    table, output = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("prompt,completion\nHi,Eve\n")
    flags = ["--csv_path", table, "--output", output, "--reward_models"]
    outcome = run("score", *flags, "es", "any=count:e#case=any")
    assert outcome.code == 0, outcome.err
    assert output.read_text().splitlines()[1].endswith(",1.0,2.0")
    refused = run("score", *flags, "count:ee")
    assert refused.code == 2
    assert "counts one letter" in refused.err
