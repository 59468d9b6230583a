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


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Makes empty results where they are asked for, below the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(*files):
        for file in files:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    return make


LATER = "a/evaluation/results.json"


@pytest.mark.parametrize(
    ("files", "given", "expected"),
    [
        # As `moodpo evaluate a` and training's own sweep leave them.
        ([LATER], ["a"], [("a", LATER)]),
        (["a/results.json"], ["a"], [("a", "a/results.json")]),
        ([LATER, "a/results.json"], ["a"], [("a", LATER)]),
        ([LATER, "a/results.json"], ["a/results.json"], [("a", "a/results.json")]),
        ([LATER], ["a/evaluation"], [("a", LATER)]),
        ([LATER], [LATER], [("a", LATER)]),
        ([LATER], ["b=a"], [("b", LATER)]),
        ([LATER], [f"b={LATER}"], [("b", LATER)]),
        # Paths with "=".
        (["lr=1/results.json"], ["lr=1"], [("lr=1", "lr=1/results.json")]),
        (["r/lr=1/results.json"], ["r/lr=1/results.json"], [("lr=1", "r/lr=1/results.json")]),
        (["r/lr=1/results.json"], ["b=r/lr=1/results.json"], [("b", "r/lr=1/results.json")]),
        (["r/a=1/b=2/results.json"], ["c=r/a=1/b=2"], [("c", "r/a=1/b=2/results.json")]),
        (["1/results.json", "x=1/results.json"], ["x=1"], [("x=1", "x=1/results.json")]),
        (["1/results.json"], ["x=y=1"], [("x=y", "1/results.json")]),
        # Runs of one name.
        (
            ["s0/a/results.json", "s1/a/evaluation/results.json", "b/results.json"],
            ["s0/a", "s1/a", "b"],
            [
                ("s0/a", "s0/a/results.json"),
                ("s1/a", "s1/a/evaluation/results.json"),
                ("b", "b/results.json"),
            ],
        ),
        (
            ["r/a/results.json", "b/results.json"],
            ["r/a", "a=b"],
            [("r/a", "r/a/results.json"), ("a", "b/results.json")],
        ),
    ],
)
def test_names_and_files(results, files, given, expected):
    results(*files)
    assert [(name, str(file)) for name, file in name_results(given)] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a=one", "a=two"], "Two results are named 'a'"),
        (["one", "one/results.json"], "Two results are named .*one"),
        (["one", "three"], "There are no results at three"),
        (["one", "a=three"], "There are no results at a=three"),
    ],
)
def test_results_that_cannot_be_told_apart_or_found(results, given, message):
    results("one/results.json", "two/results.json")
    with pytest.raises(ConfigError, match=message):
        name_results(given)


def test_it_says_which_files_it_reads(run, evaluations, tmp_path):
    outcome = run("compare", evaluations / "s0", evaluations / "s1", "--output_dir", tmp_path)
    assert f"s0: {evaluations / 's0/results.json'}" in outcome.err
