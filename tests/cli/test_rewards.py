"""`moodpo rewards`: everything that goes by name."""

from __future__ import annotations

import json

from moodpo.rewards import list_presets


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
