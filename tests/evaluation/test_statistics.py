from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from evaluation.tiny_results import LINE, steered, tiny_result
from moodpo.errors import InputError
from moodpo.evaluation import front
from moodpo.evaluation.results import Baseline, HeldOut, Normalization
from moodpo.evaluation.statistics import (
    FRONT_METRICS,
    Resampling,
    front_metrics,
    paired_difference,
    utility_win_rate,
    win_rate,
)

FEW = {"num_resamples": 200}


def resampling(result, **options):
    return Resampling.of(result.num_prompts, **{**FEW, **options})


def test_values_are_those_of_the_front_module():
    result = tiny_result(steered(), base=steered(effect=0, seed=1))
    metrics = front_metrics(result, resampling(result))
    points = result.normalized_points
    reference = result.reference_point
    assert metrics["hypervolume"]["value"] == pytest.approx(
        front.hypervolume(points, reference_point=reference)
    )
    assert metrics["mean_utility"]["value"] == pytest.approx(front.mean_utility(points, LINE))
    assert metrics["spread"]["value"] == pytest.approx(front.spread(points))
    assert metrics["non_dominated"] == front.is_non_dominated(points).tolist()
    assert metrics["points"][2][1]["value"] == pytest.approx(result.points[2, 1])
    assert metrics["baseline_points"][0][0]["value"] == pytest.approx(
        result.baseline.rewards[0, :, 0].mean()
    )
    assert (metrics["confidence"], metrics["num_resamples"]) == (0.95, 200)


def test_every_measure_has_an_interval_and_its_baseline():
    result = tiny_result(steered(), base=steered(effect=0.5, seed=1))
    metrics = front_metrics(result, resampling(result))
    for name in FRONT_METRICS:
        for key in (name, f"baseline_{name}", f"gain_{name}"):
            assert metrics[key]["low"] <= metrics[key]["value"] <= metrics[key]["high"]
        assert metrics[f"gain_{name}"]["value"] == pytest.approx(
            metrics[name]["value"] - metrics[f"baseline_{name}"]["value"]
        )
    assert metrics["hypervolume"]["low"] < metrics["hypervolume"]["high"]


def test_the_replicates_agree_with_resampling_by_hand():
    result = tiny_result(steered(6))
    draws = resampling(result, num_resamples=40)
    slow = []
    for counts in draws.counts.astype(int):
        picked = np.repeat(np.arange(6), counts)
        means = result.rewards[:, picked].mean(axis=1)
        slow.append(front.mean_utility(means, LINE))
    metrics = front_metrics(result, draws)
    bounds = metrics["mean_utility"]
    assert min(slow) - 1e-12 <= bounds["low"] <= bounds["high"] <= max(slow) + 1e-12
    points = [
        [result.rewards[1, np.repeat(np.arange(6), c.astype(int)), 0].mean()] for c in draws.counts
    ]
    low, high = np.quantile(points, [0.025, 0.975])
    assert metrics["points"][1][0]["low"] == pytest.approx(low)
    assert metrics["points"][1][0]["high"] == pytest.approx(high)


def test_pairing_by_prompt_removes_what_prompts_share():
    share = np.random.default_rng(0).normal(size=(1, 40, 2)) * 10
    base = np.broadcast_to(share, (5, 40, 2))
    result = tiny_result(base + 1.0, base=base)
    metrics = front_metrics(result, resampling(result))
    gain = metrics["gain_mean_utility"]
    assert gain["high"] - gain["low"] < 1e-9
    assert gain["value"] == pytest.approx(1.0)
    assert metrics["mean_utility"]["high"] - metrics["mean_utility"]["low"] > 1.0


def test_without_a_baseline_nothing_is_compared():
    result = tiny_result(steered())
    metrics = front_metrics(result, resampling(result))
    assert not [key for key in metrics if key.startswith(("baseline_", "gain_", "win_rate"))]
    with pytest.raises(InputError, match="baseline"):
        utility_win_rate(result)


def test_win_rate_by_hand():
    ours = np.array([[[1.0], [2.0], [3.0], [math.nan]]])
    theirs = np.array([[[0.0], [2.0], [5.0], [0.0]]])
    assert win_rate(ours, theirs).tolist() == [[pytest.approx((1 + 0.5 + 0) / 3)]]
    with pytest.raises(InputError, match=r"\[W, N, K\]"):
        win_rate(ours, theirs[:, :2])


def test_win_rate_cells_carry_wilson_intervals():
    result = tiny_result(np.ones((5, 20, 2)), base=np.zeros((5, 20, 2)))
    cell = front_metrics(result, resampling(result))["win_rate"][3][1]
    assert cell["value"] == cell["high"] == 1.0
    assert cell["low"] == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)


def test_the_utility_win_rate_asks_for_what_was_asked():
    base = np.zeros((5, 10, 2))
    rewards = np.stack([np.ones((5, 10)), -np.ones((5, 10))], axis=-1)  # better on a, worse on b
    result = tiny_result(rewards, base=base)
    # w·s: -1, -0.5, 0, 0.5, 1 against 0.
    assert utility_win_rate(result, resampling(result))["value"] == pytest.approx(0.5)
    only_a = dataclasses.replace(result, weights=np.tile([1.0, 0.0], (5, 1)))
    assert utility_win_rate(only_a, resampling(only_a))["value"] == 1.0


def test_a_missing_score_matters_only_where_it_has_weight():
    rewards = np.ones((5, 10, 2))
    rewards[:, :, 1] = math.nan
    result = tiny_result(rewards, np.tile([1.0, 0.0], (5, 1)), base=np.zeros((5, 10, 2)))
    assert utility_win_rate(result, resampling(result))["value"] == 1.0


def test_an_objective_without_any_score_leaves_no_front():
    rewards = steered()
    rewards[2, :, 1] = math.nan
    metrics = front_metrics(tiny_result(rewards), Resampling.of(40, **FEW))
    assert math.isnan(metrics["hypervolume"]["value"])
    assert metrics["non_dominated"] == []
    assert metrics["points"][2][0]["value"] == pytest.approx(rewards[2, :, 0].mean())


def test_held_out_rewards_are_compared_with_the_base_model():
    rewards, held_out = steered(), np.full((5, 40, 1), 2.0)
    texts = tiny_result(rewards).completions
    baseline = Baseline(
        name="b", rewards=rewards, completions=texts, held_out_rewards=held_out + 0.5
    )
    held = HeldOut(names=("judge",), rewards=held_out)
    result = tiny_result(rewards, held_out=held, baseline=baseline)
    metrics = front_metrics(result, resampling(result))
    assert metrics["held_out"]["judge"]["value"] == pytest.approx(2.0)
    assert metrics["gain_held_out"]["judge"]["value"] == pytest.approx(-0.5)


def test_a_difference_is_paired_and_measured_by_the_older_ruler():
    rewards = steered()
    units = Normalization(mean=np.zeros(2), std=np.array([2.0, 1.0]), source="test")
    older = tiny_result(rewards, normalization=units)
    newer = tiny_result(rewards + np.array([1.0, 0.0]))
    difference = paired_difference(newer, older, **FEW)
    assert difference["reward/a"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert difference["reward/b"]["value"] == pytest.approx(0.0)
    # w·s rises by w_a * 0.5: the mean weight of a on the line is 0.5.
    assert difference["mean_utility"]["value"] == pytest.approx(0.25)
    assert difference["hypervolume"]["low"] > 0
    assert set(difference) == {*FRONT_METRICS, "reward/a", "reward/b"}


def test_a_result_does_not_differ_from_itself():
    result = tiny_result(steered())
    for bounds in paired_difference(result, result, **FEW).values():
        assert bounds == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_equal_policies_differ_only_by_noise():
    difference = paired_difference(
        tiny_result(steered(200, seed=1)), tiny_result(steered(200, seed=1) * 1.0), **FEW
    )
    assert difference["hypervolume"]["value"] == 0.0
    other = tiny_result(steered(200, seed=2))
    apart = paired_difference(tiny_result(steered(200, seed=1)), other, **FEW)
    assert apart["reward/a"]["low"] < 0.3
    assert apart["reward/a"]["high"] > -0.3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"objectives": ("b", "a")}, "different objectives"),
        ({"prompts": tuple(f"other {n}" for n in range(40))}, "different prompts"),
        ({"weights": LINE[::-1]}, "different weights"),
    ],
)
def test_what_cannot_be_paired_is_refused(change, reason):
    result = tiny_result(steered())
    with pytest.raises(InputError, match=reason):
        paired_difference(dataclasses.replace(result, **change), result)


def test_intervals_repeat_with_the_seed():
    result = tiny_result(steered(effect=0.2))
    first = front_metrics(result, resampling(result, seed=1))
    assert first == front_metrics(result, resampling(result, seed=1))
    assert first["hypervolume"] != front_metrics(result, resampling(result, seed=2))["hypervolume"]
