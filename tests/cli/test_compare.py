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
    assert f"s0          {evaluations / 's0/results.json'}" in outcome.err


def test_one_result_is_no_comparison(run, evaluations):
    outcome = run("compare", evaluations / "s0")
    assert outcome.code == 2
    assert "at least two" in outcome.err


LAYOUTS = (
    # What there is, what is given, and which file is read under which name.
    (["a/results.json"], "a", ("a", "a/results.json")),
    (["a/results.json"], "a/results.json", ("a", "a/results.json")),
    (["a/evaluation/results.json"], "a", ("a", "a/evaluation/results.json")),
    (["a/evaluation/results.json"], "a/evaluation", ("a", "a/evaluation/results.json")),
    (["a/results.json", "a/evaluation/results.json"], "a", ("a", "a/evaluation/results.json")),
    (["a/results.json", "a/evaluation/results.json"], "a/results.json", ("a", "a/results.json")),
    (["a/results.json"], "mine=a", ("mine", "a/results.json")),
    (["lr=1e-3/results.json"], "lr=1e-3", ("lr=1e-3", "lr=1e-3/results.json")),
    (["r/lr=1/results.json"], "r/lr=1/results.json", ("lr=1", "r/lr=1/results.json")),
    (["lr=1/evaluation/results.json"], "slow=lr=1", ("slow", "lr=1/evaluation/results.json")),
    (["b/results.json"], "lr=1=b", ("lr=1", "b/results.json")),
)


@pytest.mark.parametrize(("there", "given", "expected"), LAYOUTS)
def test_results_are_found_where_they_are_written_and_named_by_their_run(
    there, given, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in there:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    ((name, file),) = name_results([given])
    assert (name, str(file)) == expected


def test_refused_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text("{}")
    a, b = tmp_path / "a", tmp_path / "b"
    with pytest.raises(ConfigError, match="Two results are named 'a'"):
        name_results([str(a), f"a={b}"])
    for missing in (str(tmp_path), f"a={tmp_path}", "x=y=z"):
        with pytest.raises(ConfigError, match="There are no results at"):
            name_results([missing])
