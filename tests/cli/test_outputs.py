"""Tables of a sweep: before and after, own corner against others."""

from __future__ import annotations

import numpy as np
import pytest

from moodpo.cli.outputs import change_table, steering_table, write_sweep
from moodpo.evaluation.analysis import analyze
from moodpo.evaluation.results import Baseline, Normalization, SweepResult


def sweep(*, baseline=True):
    """Two objectives at three weights: the first rises with its weight by 1, the second never."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=(3, 40, 2))
    means = np.array([[1.0, 5.0], [1.5, 5.0], [2.0, 5.0]])
    texts = (("text",) * 40,) * 3
    before = Baseline(name="base model", rewards=noise + 1.0, completions=texts)
    return analyze(
        SweepResult(
            objectives=("a", "b"),
            policy={"name": "p"},
            data={},
            weights=np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]),
            prompts=tuple(f"prompt {n}" for n in range(40)),
            seeds=tuple(range(40)),
            sampling={},
            rewards=means[:, None, :] + noise,
            completions=texts,
            lengths=np.ones((3, 40), dtype=np.int64),
            baseline=before if baseline else None,
            normalization=Normalization(mean=np.zeros(2), std=np.ones(2), source="x"),
            reference_point=np.zeros(2),
        ),
        num_resamples=50,
    )


def test_before_and_after_stand_in_one_cell():
    table = change_table(sweep())
    assert [column.label for column in table.columns] == ["weights", "a", "b"]
    assert table.rows[2][0] == "1.00 / 0.00"
    old, new = table.rows[2][1].split(" → ")
    assert float(old) == pytest.approx(1.0, abs=0.05)
    assert float(new) == pytest.approx(2.0, abs=0.05)
    assert "→" not in change_table(sweep(baseline=False)).rows[0][1]


def test_own_corner_against_the_others():
    first, second = steering_table(sweep()).rows
    assert first[0] == "a"
    assert float(first[1]) - float(first[2]) == pytest.approx(1.0, abs=0.05)
    assert first[3].startswith(("1.0", "0.99"))
    assert float(second[1]) == pytest.approx(float(second[2]), abs=0.05)
    low, high = second[3].split("[")[1].rstrip("]").replace("−", "-").split(", ")
    assert float(low) <= 0 <= float(high)


def test_files(tmp_path):
    write_sweep(sweep(), tmp_path / "new")
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {"results.json", "front.png", "report.html"}
    assert SweepResult.load(tmp_path / "new" / "results.json").objectives == ("a", "b")
