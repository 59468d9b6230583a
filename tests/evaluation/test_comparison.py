from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.synthetic_results import make_result
from moodpo.errors import ConfigError
from moodpo.evaluation.comparison import Comparison, compare
from moodpo.evaluation.front import hypervolume
from moodpo.evaluation.results import Normalization, SweepResult

MEASURES = ("hypervolume", "mean_utility", "expected_utility", "steerability")


def bare(**options: Any) -> SweepResult:
    return make_result(**{"divisions": 2, "num_prompts": 10, "analyzed": False} | options)


def run(*results: SweepResult, seed: int = 0, num_resamples: int = 40) -> Comparison:
    named = [(f"run {index}", result) for index, result in enumerate(results)]
    return compare(named, seed=seed, num_resamples=num_resamples)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return run(make_result(gain=0.4, name="x"), make_result(seed=1), make_result(seed=2, gain=1.5))


def test_a_policy_does_not_differ_from_itself() -> None:
    found = run(bare(), bare())
    for key, bounds in found.differences[0].items():
        if key != "sparsity":  # two points at least, which a resample may lack
            assert (bounds["value"], bounds["low"], bounds["high"]) == (0.0, 0.0, 0.0), key
    assert found.measures[1]["win_rate_against_first"]["value"] == 0.5
    assert "win_rate_against_first" not in found.measures[0]


@given(st.floats(0.1, 3.0))
@settings(max_examples=10, deadline=None)
def test_a_shift_of_every_reward_is_found_exactly(shift: float) -> None:
    first = bare()
    better = replace(first, rewards=first.rewards + shift * first.normalization.std)
    found = run(first, better, num_resamples=10)
    for key in ("mean_utility", "expected_utility", "reward/positivity", "reward/objectivity"):
        assert list(found.differences[0][key].values()) == pytest.approx([shift] * 3)
    assert found.differences[0]["steerability"]["value"] == 0.0
    assert found.differences[0]["hypervolume"]["low"] > 0
    assert found.measures[1]["win_rate_against_first"]["value"] == 1.0


def test_all_are_measured_on_the_ruler_of_the_first() -> None:
    first, second = bare(), bare(seed=3)
    units = Normalization(mean=np.full(2, 5.0), std=np.full(2, 7.0), source="elsewhere")
    other = replace(second, normalization=units, reference_point=np.full(2, -9.0))
    found = run(first, other)
    expected = hypervolume(first.normalize(second.points), reference_point=first.reference_point)
    assert found.measures[1]["hypervolume"]["value"] == pytest.approx(expected)
    assert found.measures == run(first, second).measures
    assert found.ruler == {
        "from": "run 0",
        "normalization": {
            "mean": first.normalization.mean.tolist(),
            "std": first.normalization.std.tolist(),
            "source": "base model",
        },
        "reference_point": [-1.2, -1.2],
    }


def test_differences_are_those_of_the_measures(comparison: Comparison) -> None:
    for index, differences in enumerate(comparison.differences, start=1):
        for key in MEASURES:
            gap = comparison.measures[index][key]["value"] - comparison.measures[0][key]["value"]
            assert differences[key]["value"] == pytest.approx(gap), key


def test_pairing_by_prompt_narrows_the_interval() -> None:
    first, second = (bare(divisions=8, num_prompts=60, seed=seed) for seed in (0, 1))
    found = run(first, second, num_resamples=300)
    alone = [one["mean_utility"]["high"] - one["mean_utility"]["low"] for one in found.measures]
    paired = found.differences[0]["mean_utility"]
    assert paired["high"] - paired["low"] < 0.7 * min(alone)


def test_the_seed_decides_the_intervals() -> None:
    pair = (bare(), bare(seed=1))
    assert run(*pair, seed=4).to_dict() == run(*pair, seed=4).to_dict()
    assert run(*pair, seed=4).differences != run(*pair, seed=5).differences


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_objectives": 3}, r"objectives \['positivity', 'objectivity', 'brevity'\]"),
        ({"objectives": ("objectivity", "positivity")}, "in the same order"),
        ({"prompts": tuple("abcdefghij")}, "pairing is impossible .first at prompt 1: 'a'"),
        ({"num_prompts": 9}, "pairing is impossible .9 and 10 prompts"),
        ({"prompts": bare().prompts[::-1]}, "the same prompts in another order"),
        ({"divisions": 3}, "other weights.*4 and 3 vectors"),
        ({"weights": np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])}, "other weights"),
    ],
)
def test_what_cannot_be_paired_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(bare(), bare(**other))


def test_names_and_numbers_of_results_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least two results; got 1"):
        run(bare())
    with pytest.raises(ConfigError, match="Two results are called 'a'"):
        compare([("a", bare()), ("a", bare())])


def test_what_weakens_the_comparison_is_said() -> None:
    sampling = {**bare().sampling, "temperature": 0.7}
    odd = bare(sampling=sampling, seeds=tuple(range(10)), warnings=("Collapse: all alike.",))
    warnings = run(bare(), odd).warnings
    assert warnings[0] == "run 1: Collapse: all alike."
    assert (
        warnings[1] == "run 1 was sampled with other settings than run 0: temperature 0.7 and 1.0."
    )
    assert "the luck of sampling is not" in warnings[2]
    assert run(bare(), bare()).warnings == ()


def test_missing_numbers_become_null() -> None:
    rewards = bare().rewards.copy()
    rewards[0, :, 0] = np.nan
    content = run(bare(), bare(rewards=rewards)).to_dict()
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text)["policies"][1]["measures"]["hypervolume"]["value"] is None
