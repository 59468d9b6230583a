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
from moodpo.evaluation.statistics import Resampling
from moodpo.evaluation.steerability import (
    HEADLINE,
    MAX_LEVELS,
    average_ranks,
    conditional_reward_determinant,
    encoding_sensitivity,
    rank_correlation,
    spearman_of_means,
    spearman_within_prompt,
    steerability_metrics,
)

TIED = st.integers(-2, 2).map(float)


def measure(rewards, **changes):
    result = tiny_result(rewards, **changes)
    return steerability_metrics(result, Resampling.of(result.num_prompts, num_resamples=200))


def slow_ranks(values):
    ordered = sorted(values)
    return [
        sum(i + 1 for i, other in enumerate(ordered) if other == v) / ordered.count(v)
        for v in values
    ]


def slow_spearman(first, second):
    pairs = [
        (x, y) for x, y in zip(first, second, strict=True) if not (math.isnan(x) or math.isnan(y))
    ]
    if len({x for x, _ in pairs}) < 2:
        return math.nan
    x, y = slow_ranks([p[0] for p in pairs]), slow_ranks([p[1] for p in pairs])
    mx, my = sum(x) / len(x), sum(y) / len(y)
    sxy = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    sxx, syy = sum((a - mx) ** 2 for a in x), sum((b - my) ** 2 for b in y)
    return sxy / math.sqrt(sxx * syy) if syy else 0.0


def test_average_ranks_by_hand():
    assert average_ranks([10.0, 30.0, 10.0, 20.0]).tolist() == [1.5, 4.0, 1.5, 3.0]
    ranks = average_ranks([2.0, math.nan, 1.0]).tolist()
    assert ranks == [2.0, pytest.approx(math.nan, nan_ok=True), 1.0]


@given(hnp.arrays(np.float64, st.integers(1, 9), elements=TIED))
def test_average_ranks_agree_with_plain_python(values):
    assert average_ranks(values).tolist() == slow_ranks(values.tolist())


def test_rank_correlation_by_hand():
    # Ranks 1..5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24).
    assert rank_correlation([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]) == pytest.approx(0.8)
    # With a tie (ranks 1, 2.5, 2.5, 4), as scipy.stats.spearmanr answers.
    assert rank_correlation([1, 2, 3, 4], [0, 1, 1, 5]) == pytest.approx(0.9486832980505138)


@given(st.data(), st.integers(1, 8))
def test_rank_correlation_agrees_with_plain_python(data, size):
    elements = st.one_of(TIED, st.just(math.nan))
    first = data.draw(hnp.arrays(np.float64, size, elements=elements))
    second = data.draw(hnp.arrays(np.float64, size, elements=elements))
    expected = slow_spearman(first.tolist(), second.tolist())
    assert float(rank_correlation(first, second)) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@given(hnp.arrays(np.float64, (5, 3, 2), elements=TIED))
def test_each_prompt_is_correlated_by_itself(rewards):
    fast = spearman_within_prompt(LINE, rewards)
    for n in range(3):
        for k in range(2):
            slow = slow_spearman(LINE[:, k].tolist(), rewards[:, n, k].tolist())
            assert fast[n, k] == pytest.approx(slow, abs=1e-12)


@given(hnp.arrays(np.float64, (5, 3, 2), elements=st.floats(-3, 3)), st.permutations(range(5)))
def test_the_order_of_weights_does_not_matter(rewards, order):
    shuffled = spearman_within_prompt(LINE[order], rewards[order])
    assert np.allclose(shuffled, spearman_within_prompt(LINE, rewards), atol=1e-12)


@given(hnp.arrays(np.float64, (5, 3, 2), elements=TIED))
def test_only_the_order_of_rewards_matters(rewards):
    stretched = np.exp(rewards) * 3 - 1
    assert np.allclose(
        spearman_within_prompt(LINE, stretched), spearman_within_prompt(LINE, rewards), atol=1e-12
    )


@pytest.mark.parametrize(("effect", "expected"), [(1.0, 1.0), (-1.0, -1.0)])
def test_perfect_and_reversed_steering(effect, expected):
    report = measure(steered(effect=effect, noise=0.0))
    assert report["mean"]["value"] == pytest.approx(expected)
    assert report["spearman_of_means"]["value"] == pytest.approx(expected)
    for objective in report["objectives"].values():
        assert objective["spearman_within_prompt"]["value"] == pytest.approx(expected)
        assert objective["violations"] == (0.0 if effect > 0 else 1.0)
        assert objective["violations_beyond_noise"] == (0.0 if effect > 0 else 1.0)


def test_perfect_steering_of_three_objectives_is_one_despite_ties():
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0.5, 0, 0.5]])
    rewards = np.repeat(weights[:, None, :], 4, axis=1)
    assert spearman_within_prompt(weights, rewards).tolist() == [pytest.approx([1.0] * 3)] * 4


def test_no_steering_is_zero_within_noise():
    report = measure(steered(200, effect=0.0))
    assert abs(report["mean"]["value"]) < 0.1
    assert report["mean"]["low"] < 0 < report["mean"]["high"]
    for objective in report["objectives"].values():
        assert objective["corner_gap"]["low"] < 0 < objective["corner_gap"]["high"]
        assert objective["dead_zone"] == {"from": 0.0, "to": 1.0, "share": 1.0}
        assert objective["violations_beyond_noise"] == 0.0


def test_constant_answers_count_as_no_steering():
    report = measure(np.ones((5, 8, 2)))
    assert report["mean"]["value"] == 0.0
    assert report["spearman_of_means"]["value"] == 0.0


def test_the_two_correlations_answer_different_questions():
    # A small true effect under much noise: the curve rises, single prompts hardly show it.
    report = measure(steered(2000, effect=0.5))
    assert report["spearman_of_means"]["value"] > 0.9
    assert 0.05 < report["spearman_within_prompt"]["value"] < 0.4
    assert report["mean"] == report[HEADLINE]
    assert report["headline"] == HEADLINE


def test_differences_between_prompts_cannot_steer():
    # Pooled, the rewards correlate with nothing but the prompt; within prompts they follow w.
    rewards = steered(noise=0.0) + 1000 * np.arange(40)[None, :, None]
    assert measure(rewards)["mean"]["value"] == pytest.approx(1.0)


def test_gaps_leave_the_rest_of_the_prompt():
    rewards = steered(noise=0.0)
    rewards[2, 0, 0] = math.nan
    rewards[1:, 1, 0] = math.nan
    within = spearman_within_prompt(LINE, rewards)
    assert within[0, 0] == pytest.approx(1.0)
    assert math.isnan(within[1, 0])
    assert measure(rewards)["mean"]["value"] == pytest.approx(1.0)


def test_spearman_of_means_by_hand():
    rewards = np.array([[[0.0], [4.0]], [[1.0], [1.0]], [[3.0], [5.0]]])  # means 2, 1, 4
    weights = np.array([[0.0], [0.5], [1.0]])
    assert spearman_of_means(weights, rewards).tolist() == pytest.approx([0.5])


def test_corners_by_hand():
    rewards = np.zeros((5, 4, 2))
    rewards[4, :, 0] = [2.0, 2.0, 2.0, 0.0]  # a's own end
    rewards[0, :, 0] = [1.0, 1.0, 2.0, 1.0]  # b's end
    objective = measure(rewards)["objectives"]["a"]
    assert objective["corner_gap"]["value"] == pytest.approx(6 / 4 - 5 / 4)
    assert objective["corner_win_rate"]["value"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)


def test_the_effect_size_is_in_standard_deviations():
    result = tiny_result(steered())
    units = dataclasses.replace(result.normalization, std=np.array([4.0, 1.0]))
    report = steerability_metrics(dataclasses.replace(result, normalization=units))
    objective = report["objectives"]["a"]
    for bound in ("value", "low", "high"):
        assert objective["effect_size"][bound] == pytest.approx(objective["corner_gap"][bound] / 4)
    assert objective["range"]["value"] == pytest.approx(np.ptp(result.points[:, 0]) / 4)


def test_without_corners_there_is_no_gap():
    report = measure(steered()[2:3], weights=[[0.5, 0.5]])
    assert math.isnan(report["objectives"]["a"]["corner_gap"]["value"])
    assert math.isnan(report["mean"]["value"])


def test_a_step_has_dead_zones_beside_it():
    step = (LINE[:, :1] > 0.6).astype(float)  # 0 0 0 1 1
    rewards = np.repeat(step[:, None, :], 50, axis=1)
    rewards = rewards + 0.01 * np.random.default_rng(0).normal(size=rewards.shape)
    report = measure(rewards, weights=LINE[:, :1])["objectives"]["a"]
    assert report["dead_zone"] == {"from": 0.0, "to": 0.5, "share": 0.5}
    assert report["violations_beyond_noise"] == 0.0


def test_a_rise_within_noise_is_no_rise():
    noise = 10 * np.random.default_rng(0).choice([-1.0, 1.0], size=(5, 40, 1))
    rewards = LINE[:, None, :1] + noise - noise.mean(axis=1, keepdims=True)
    report = measure(rewards, weights=LINE[:, :1])["objectives"]["a"]
    assert report["curve"]["rewards"] == pytest.approx(LINE[:, 0])
    assert report["dead_zone"]["share"] == 1.0


def test_the_curve_gathers_equal_levels():
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.1 + 0.2, 0.7, 0], [0.3, 0, 0.7]])
    rewards = np.arange(5.0)[:, None, None] * np.ones((5, 2, 3))
    curve = measure(rewards, weights=weights)["objectives"]["a"]["curve"]
    assert curve["weights"] == pytest.approx([0.0, 0.3, 1.0])
    assert curve["rewards"] == pytest.approx([1.5, 3.5, 0.0])


def test_many_levels_are_binned():
    line = np.linspace(0, 1, 101)
    weights = np.stack([line, 1 - line], axis=1)
    rewards = np.repeat(weights[:, None], 3, axis=1)
    curve = measure(rewards, weights=weights)["objectives"]["a"]["curve"]
    assert len(curve["weights"]) == MAX_LEVELS
    assert curve["rewards"] == pytest.approx(curve["weights"])


def test_crd_by_hand():
    rewards = np.array([[[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]]])  # variance 4/3 each
    assert conditional_reward_determinant(rewards) == pytest.approx((4 / 3) ** 2)
    assert math.isnan(conditional_reward_determinant(rewards[:, :1]))


@given(
    # Multiples of 1/8: numpy's own determinant warns of numbers next to nothing.
    hnp.arrays(np.float64, (2, 4, 2), elements=st.integers(-24, 24).map(lambda n: n / 8)),
    st.floats(-50, 50),
)
def test_crd_agrees_with_numpy_and_ignores_shifts(rewards, shift):
    slow = np.mean([np.linalg.det(np.cov(rows, rowvar=False)) for rows in rewards])
    assert conditional_reward_determinant(rewards) == pytest.approx(slow, abs=1e-9)
    shifted = conditional_reward_determinant(rewards + shift)
    assert shifted == pytest.approx(slow, abs=1e-6)


def test_crd_leaves_out_incomplete_answers():
    rewards = np.random.default_rng(0).normal(size=(2, 6, 2))
    gaps = rewards.copy()
    gaps[0, 5, 0] = math.nan
    dets = [np.linalg.det(np.cov(rows, rowvar=False)) for rows in (rewards[0, :5], rewards[1])]
    assert conditional_reward_determinant(gaps) == pytest.approx(np.mean(dets))


def test_shapes_are_checked():
    with pytest.raises(InputError, match=r"\[W, N, K\]"):
        spearman_within_prompt(LINE, np.zeros((5, 2)))


def test_an_encoding_that_changes_nothing():
    result = tiny_result(steered())
    report = encoding_sensitivity(result, result)
    assert report["mean"] == {
        "mean_difference": 0.0,
        "expected_from_noise": 0.0,
        "rank_agreement": pytest.approx(1.0),
    }


def test_objectives_are_matched_by_name_and_weights_by_value():
    result = tiny_result(steered())
    turned = tiny_result(
        result.rewards[::-1, :, ::-1], result.weights[::-1, ::-1], objectives=("b", "a")
    )
    assert encoding_sensitivity(result, turned)["a"]["mean_difference"] == 0.0


def test_a_difference_is_measured_in_standard_deviations():
    result = tiny_result(steered())
    units = dataclasses.replace(result.normalization, std=np.array([2.0, 1.0]))
    result = dataclasses.replace(result, normalization=units)
    other = tiny_result(result.rewards + np.array([1.0, 0.0]))
    report = encoding_sensitivity(result, other)
    assert report["a"]["mean_difference"] == pytest.approx(0.5)
    assert report["b"]["mean_difference"] == pytest.approx(0.0)
    assert report["mean"]["mean_difference"] == pytest.approx(0.25)
    assert report["a"]["rank_agreement"] == pytest.approx(1.0)


def test_equal_encodings_differ_as_noise_predicts():
    report = encoding_sensitivity(
        tiny_result(steered(400, effect=0, seed=1)), tiny_result(steered(400, effect=0, seed=2))
    )
    seen, expected = report["mean"]["mean_difference"], report["mean"]["expected_from_noise"]
    assert 0.4 * expected < seen < 2 * expected


def test_encodings_must_be_of_one_sweep():
    result = tiny_result(steered())
    with pytest.raises(InputError, match="different objectives"):
        encoding_sensitivity(result, dataclasses.replace(result, objectives=("a", "c")))
    with pytest.raises(InputError, match="missing in the second"):
        encoding_sensitivity(result, dataclasses.replace(result, weights=LINE * 0.5 + 0.25))
    with pytest.raises(InputError, match="same prompts"):
        encoding_sensitivity(result, tiny_result(steered(39)))
