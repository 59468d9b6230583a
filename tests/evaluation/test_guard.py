from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evaluation.tiny_results import LINE, steered, tiny_result
from moodpo.errors import InputError
from moodpo.evaluation.front import hypervolume
from moodpo.evaluation.guard import (
    distinct_n,
    duplicate_rate,
    guard_metrics,
    guard_warnings,
    length_by_weight,
    length_controlled_rewards,
    length_slopes,
    unchanged_rate,
)

WORDS = st.lists(st.sampled_from(["red", "Blue", "blue", "green"]), max_size=6).map(" ".join)
NOUNS = ("sky", "tree", "house", "river", "bread", "stone", "light", "road", "boat", "field")


def varied(W=5, N=10, suffix=""):
    """Texts without a repeated one."""
    return tuple(
        tuple(
            f"the {NOUNS[n]} number {w} beside {NOUNS[(n + w + 1) % 10]}{suffix}" for n in range(N)
        )
        for w in range(W)
    )


def healthy(**changes):
    base = steered(10, effect=0.0, seed=1)
    result = tiny_result(steered(10), base=base, completions=varied())
    baseline = dataclasses.replace(result.baseline, completions=varied(suffix=" there"))
    return dataclasses.replace(result, **{"baseline": baseline, **changes})


def test_a_healthy_sweep_is_silent():
    assert guard_warnings(healthy()) == ()


def test_distinct_n_by_hand():
    assert distinct_n(["a b a", "A b"], 1) == pytest.approx(2 / 5)
    assert distinct_n(["a b a", "A b"], 2) == pytest.approx(2 / 3)  # (a b) (b a) (a b)
    assert math.isnan(distinct_n(["one", ""], 2))


@given(st.lists(WORDS, max_size=5), st.integers(1, 3))
def test_distinct_n_agrees_with_plain_python(texts, n):
    grams = []
    for text in texts:
        words = text.lower().split()
        grams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    expected = len(set(grams)) / len(grams) if grams else math.nan
    assert distinct_n(texts, n) == pytest.approx(expected, nan_ok=True)


def test_duplicate_rate_by_hand():
    assert duplicate_rate(["yes", "Yes ", "no", "maybe"]) == pytest.approx(0.5)
    assert duplicate_rate(["a", "b"]) == 0.0
    assert duplicate_rate([]) == 0.0


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_saying_everything_twice_repeats_everything(texts):
    assert duplicate_rate(texts * 2) == 1.0


def test_unchanged_rate_by_hand():
    assert unchanged_rate([["a", "b"], ["a", "c"], ["A", "b"]]) == pytest.approx(0.5)
    assert math.isnan(unchanged_rate([["a", "b"]]))


def test_length_by_weight_by_hand():
    assert length_by_weight([[1, 3], [10, 0]]).tolist() == [2.0, 5.0]


@given(st.floats(-1, 1), st.integers(0, 99))
def test_the_slope_of_length_is_found_beneath_prompts_and_weights(slope, seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, 60, size=(5, 8))
    prompt, weight = generator.normal(size=(1, 8)), generator.normal(size=(5, 1))
    rewards = (slope * lengths + 9 * prompt + 5 * weight)[..., None]
    assert length_slopes(rewards, lengths)[0] == pytest.approx(slope, abs=1e-9)
    controlled = length_controlled_rewards(rewards, lengths)[..., 0]
    expected = slope * lengths.mean() + 9 * prompt + 5 * weight
    assert np.allclose(controlled, expected, atol=1e-8)


def test_steering_that_comes_with_length_is_not_blamed_on_length():
    # Answers grow with the weight and reward follows the weight, not the length within it.
    generator = np.random.default_rng(0)
    lengths = 10 + 40 * LINE[:, :1] + generator.normal(size=(5, 400)).round(1)
    rewards = (LINE[:, :1] + 0.1 * generator.normal(size=(5, 400)))[..., None]
    controlled = length_controlled_rewards(rewards, lengths).mean(axis=1)[:, 0]
    assert np.allclose(controlled, LINE[:, 0], atol=0.1)


@given(hnp.arrays(np.float64, (3, 4, 2), elements=st.floats(-5, 5)))
def test_equal_lengths_change_nothing(rewards):
    lengths = np.full((3, 4), 7)
    assert length_slopes(rewards, lengths).tolist() == [0.0, 0.0]
    assert np.array_equal(length_controlled_rewards(rewards, lengths), rewards)


def test_gaps_stay_gaps():
    rewards, lengths = steered(6), np.arange(30).reshape(5, 6)[::-1] % 7
    rewards[1, 2, 0] = math.nan
    controlled = length_controlled_rewards(rewards, lengths)
    assert np.isnan(controlled).sum() == 1
    complete = np.delete(np.arange(6), 2)
    expected = length_slopes(rewards[:, complete], lengths[:, complete])[0]
    assert length_slopes(rewards, lengths)[0] == pytest.approx(expected)


def test_reward_that_is_only_length_adds_no_controlled_hypervolume():
    lengths = np.random.default_rng(0).integers(5, 60, size=(5, 10))
    lengths[4] += 40
    result = tiny_result(np.repeat(0.1 * lengths[..., None], 2, axis=2), lengths=lengths)
    metrics = guard_metrics(result)
    flat = 0.1 * lengths.mean() + 1  # every point at the mean length, above -1
    assert metrics["length_controlled_hypervolume"] == pytest.approx(flat**2)


def test_shapes_are_checked():
    with pytest.raises(InputError, match=r"lengths \[W, N\]"):
        length_slopes(np.zeros((2, 3, 1)), np.zeros((2, 2)))


def test_guard_metrics_have_one_value_per_weight():
    metrics = guard_metrics(healthy())
    for name in ("length", "distinct_1", "distinct_2", "duplicate_rate", "empty_rate"):
        assert len(metrics[name]) == len(metrics[f"baseline_{name}"]) == 5
    assert metrics["length"] == [4.0] * 5
    assert metrics["baseline_length"] == [7.0] * 5  # words: its tokens were not counted
    assert np.allclose(metrics["length_controlled_points"], healthy().points)
    plain = hypervolume(healthy().normalized_points, reference_point=healthy().reference_point)
    assert metrics["length_controlled_hypervolume"] == pytest.approx(plain)
    assert metrics["unchanged_rate"] == 0.0


def test_collapse_at_one_corner_is_reported():
    texts = (*varied()[:4], ("I love it",) * 10)
    warnings = guard_warnings(healthy(completions=texts))
    assert any("Collapse: at a=1, b=0 100% of the answers repeat" in text for text in warnings)


def test_a_base_model_that_repeats_itself_is_no_collapse_of_the_policy():
    texts = (*varied()[:4], (*varied()[4][:5], *("I do not know",) * 5))
    result = healthy(completions=texts)
    assert any("Collapse" in text for text in guard_warnings(result))
    theirs = (*varied()[:4], (*varied()[4][:7], *("I do not know",) * 3))
    baseline = dataclasses.replace(result.baseline, completions=theirs)
    warnings = guard_warnings(dataclasses.replace(result, baseline=baseline))
    assert not any("Collapse" in text for text in warnings)


def test_empty_answers_are_reported():
    texts = (*varied()[:4], (*varied()[4][:9], " \n"))
    assert any(
        "10% of the answers are empty" in t for t in guard_warnings(healthy(completions=texts))
    )


def test_lost_variety_is_reported():
    texts = (*varied()[:4], tuple(f"{noun} great great great great great" for noun in NOUNS))
    warnings = guard_warnings(healthy(completions=texts))
    assert any("Less variety: at a=1, b=0" in text for text in warnings)


def test_longer_answers_are_reported_with_what_length_is_worth():
    generator = np.random.default_rng(0)
    lengths = generator.integers(30, 60, size=(5, 10))
    rewards = np.stack([0.1 * lengths, -0.2 * lengths], axis=-1)
    result = healthy(lengths=lengths, rewards=rewards)
    baseline = dataclasses.replace(result.baseline, lengths=np.full((5, 10), 12))
    [warning] = guard_warnings(dataclasses.replace(result, baseline=baseline))
    assert warning.startswith("Length: at ")
    assert "a +0.100, b -0.200" in warning


def test_ignored_weights_are_reported():
    warnings = guard_warnings(healthy(completions=(varied()[0],) * 5))
    assert any("Weights ignored: 100%" in text for text in warnings)


def test_missing_scores_are_reported():
    rewards = steered(10)
    rewards[:, 0, 1] = math.nan
    warnings = guard_warnings(healthy(rewards=rewards))
    assert any(text.startswith("b gave no score to 10.0%") for text in warnings)


@pytest.mark.parametrize(
    ("proxy_low", "held_out_high", "expected"),
    [(0.1, -0.2, True), (-0.1, -0.2, False), (0.1, 0.2, False)],
)
def test_divergence_needs_both_beyond_noise(proxy_low, held_out_high, expected):
    metrics = {
        "gain_mean_utility": {"value": 0.5, "low": proxy_low, "high": 0.9},
        "gain_held_out": {"judge": {"value": -0.5, "low": -0.8, "high": held_out_high}},
    }
    warnings = guard_warnings(healthy(metrics=metrics))
    assert any("Over-optimization" in text and "judge" in text for text in warnings) is expected


def test_few_answers_repeat_by_chance():
    result = tiny_result(steered(2), completions=(("yes", "yes"),) * 5)
    assert not any("Collapse" in text for text in guard_warnings(result))


@pytest.mark.parametrize(
    ("finished", "rates", "warned"),
    [
        (None, None, False),
        ([[True] * 10] * 5, [0.0] * 5, False),
        ([[False] * 10] * 4 + [[True] + [False] * 9], [1.0] * 4 + [0.9], False),
        ([[False] * 10] * 5, [1.0] * 5, True),
    ],
)
def test_answers_that_are_all_cut(finished, rates, warned):
    ended = None if finished is None else np.array(finished)
    result = healthy(finished=ended)
    result = dataclasses.replace(
        result, baseline=dataclasses.replace(result.baseline, finished=ended)
    )
    guard = guard_metrics(result)
    for name in ("truncated_rate", "baseline_truncated_rate"):
        assert guard.get(name) == (None if rates is None else pytest.approx(rates))
    warnings = [text for text in guard_warnings(result) if "All answers were cut" in text]
    assert len(warnings) == warned
    assert all("cut at 4 tokens" in text for text in warnings)
