"""`moodpo compare`: names, files, refusal."""

from __future__ import annotations

import json

import pytest

from moodpo.cli.compare import name_results
from moodpo.errors import ConfigError


@pytest.fixture(scope="module")
def evaluations(trained, prompts, tmp_path_factory):
    from moodpo.cli import main

    folder = tmp_path_factory.mktemp("evaluations")
    for seed in (0, 1):
        flags = f"--csv_path {prompts} --weights_per_objective 3 --max_new_tokens 6 --seed {seed}"
        command = ["evaluate", str(trained), *flags.split(), "--output_dir", f"{folder}/s{seed}"]
        assert main(command) == 0
    return folder


def test_it_writes_and_prints_a_comparison(run, evaluations, tmp_path):
    outcome = run(
        "compare",
        evaluations / "s0",
        f"other={evaluations / 's1/results.json'}",
        "--output_dir",
        tmp_path,
    )
    assert outcome.code == 0, outcome.err
    names = {"comparison.json", "comparison.png", "comparison.md", "comparison.html"}
    assert {p.name for p in tmp_path.iterdir()} == names
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [p["name"] for p in found["policies"]] == ["s0", "other"]
    assert "On one ruler" in outcome.out
    assert "Difference from s0" in outcome.out


def test_one_result_is_no_comparison(run, evaluations):
    outcome = run("compare", evaluations / "s0")
    assert outcome.code == 2
    assert "at least two" in outcome.err


def test_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text("{}")
    a, b = tmp_path / "a", tmp_path / "b"
    assert name_results([str(a), str(b / "results.json"), f"c={b}"]) == [
        ("a", a / "results.json"),
        ("b", b / "results.json"),
        ("c", b / "results.json"),
    ]
    with pytest.raises(ConfigError, match="Two results are named 'a'"):
        name_results([str(a), f"a={b}"])
    with pytest.raises(ConfigError, match="There are no results at"):
        name_results([str(tmp_path)])
