from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moodpo.errors import InputError
from moodpo.evaluation.bootstrap import (
    MAX_JACKKNIFE_GROUPS,
    interval,
    intervals,
    jackknife_counts,
    present_means,
    resample_counts,
    resampled_means,
    wilson_interval,
)


def slow_mean(values, counts):
    """The mean of a list that repeats value n counts[n] times, gaps left out."""
    drawn = [
        v for v, c in zip(values, counts, strict=True) for _ in range(int(c)) if not math.isnan(v)
    ]
    return sum(drawn) / len(drawn) if drawn else math.nan


def test_every_resample_draws_as_many_prompts_as_there_are():
    counts = resample_counts(7, num_resamples=50, seed=3)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert np.array_equal(counts, resample_counts(7, num_resamples=50, seed=3))
    assert not np.array_equal(counts, resample_counts(7, num_resamples=50, seed=4))


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].tolist()
    resample_counts(5, num_resamples=5, seed=0)
    assert np.random.get_state()[1].tolist() == before


def test_the_jackknife_leaves_out_each_prompt_once():
    assert jackknife_counts(3).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    many = jackknife_counts(MAX_JACKKNIFE_GROUPS * 2 + 1)
    assert many.shape == (MAX_JACKKNIFE_GROUPS, MAX_JACKKNIFE_GROUPS * 2 + 1)
    assert ((many == 0).sum(axis=0) == 1).all()


def test_resampled_means_by_hand():
    means = resampled_means([[1.0, 2.0, math.nan]], [[1, 1, 1], [0, 2, 1], [0, 0, 3]])
    assert means[:, 0].tolist() == pytest.approx([1.5, 2.0, math.nan], nan_ok=True)


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 3), st.integers(1, 6)),
        elements=st.one_of(st.floats(-5, 5), st.just(math.nan)),
    ),
    st.integers(0, 99),
)
def test_resampled_means_agree_with_plain_python(values, seed):
    counts = resample_counts(values.shape[1], num_resamples=4, seed=seed)
    means = resampled_means(values, counts)
    for r, draws in enumerate(counts.tolist()):
        for i, row in enumerate(values.tolist()):
            assert means[r, i] == pytest.approx(slow_mean(row, draws), nan_ok=True, abs=1e-12)


def test_present_means_draw_each_once():
    values = [[[1.0, 2.0, math.nan], [3.0, 4.0, 8.0]], [[math.nan] * 3, [0.0, 0.0, 0.0]]]
    expected = np.array([[1.5, 5.0], [math.nan, 0.0]])
    np.testing.assert_allclose(present_means(values), expected)


def test_the_percentile_interval_by_hand():
    assert interval(50.0, np.arange(101), confidence=0.9) == pytest.approx(
        {"value": 50.0, "low": 5.0, "high": 95.0}
    )


def test_an_interval_holds_its_value():
    assert interval(3.0, [1.0, 2.0]) == {"value": 3.0, "low": pytest.approx(1.025), "high": 3.0}


def test_bca_without_bias_and_skew_is_the_percentile_interval():
    draws = np.linspace(-1, 1, 2001)
    symmetric = np.array([-1.0, 0.0, 1.0])
    plain, corrected = interval(0.0, draws), interval(0.0, draws, jackknife=symmetric)
    assert corrected == pytest.approx(plain, abs=1e-9)


def test_bca_moves_against_the_bias():
    # Noise lifted most replicates above the value: the corrected interval lies lower.
    draws = np.linspace(0, 1, 1001)
    plain = interval(0.25, draws)
    corrected = interval(0.25, draws, jackknife=np.zeros(5))
    assert corrected["high"] < plain["high"]
    assert corrected["low"] < plain["low"]
    # By the formula: z0 = Φ⁻¹(0.25), level Φ(2 z0 + 1.96) = Φ(0.611).
    assert corrected["high"] == pytest.approx(0.7294, abs=2e-3)


def test_bca_leans_with_the_skew():
    # Deviations 1, 1, -2: a = -6 / (6 * 6^1.5), levels Φ(z / (1 - a z)) = 0.01186 and 0.95813.
    bounds = interval(0.0, np.linspace(-1, 1, 20001), jackknife=[0.0, 0.0, 3.0])
    assert bounds["low"] == pytest.approx(2 * 0.01186 - 1, abs=2e-4)
    assert bounds["high"] == pytest.approx(2 * 0.95813 - 1, abs=2e-4)


@given(
    st.floats(-1, 1),
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-2, 2)),
    hnp.arrays(np.float64, st.integers(1, 10), elements=st.floats(-2, 2)),
)
def test_bca_is_always_an_interval_around_the_value(value, draws, jackknife):
    bounds = interval(value, draws, jackknife=jackknife)
    assert bounds["low"] <= bounds["value"] <= bounds["high"]
    assert bounds["low"] >= min(draws.min(), value)
    assert bounds["high"] <= max(draws.max(), value)


def test_what_cannot_be_measured_has_no_interval():
    assert math.isnan(interval(math.nan, [1.0])["low"])
    assert math.isnan(interval(1.0, [math.nan])["high"])
    with pytest.raises(InputError, match="confidence"):
        interval(1.0, [1.0], confidence=95)


def test_intervals_keep_the_shape():
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    table = intervals(values, np.stack([values - 1, values + 1]))
    assert [[cell["value"] for cell in row] for row in table] == values.tolist()
    assert table[1][2]["low"] == pytest.approx(5.05)


def test_the_interval_covers_a_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        data = generator.exponential(size=60)  # skewed, mean 1
        counts = resample_counts(60, num_resamples=200, seed=trial)
        left_out = resampled_means(data, jackknife_counts(60))
        bounds = interval(data.mean(), resampled_means(data, counts), jackknife=left_out)
        hits += bounds["low"] <= 1.0 <= bounds["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_wilson_by_hand():
    # 8 of 10 at 95 %: the textbook interval is (0.490, 0.943).
    bounds = wilson_interval(0.8, 10)
    assert bounds["low"] == pytest.approx(0.4902, abs=1e-4)
    assert bounds["high"] == pytest.approx(0.9433, abs=1e-4)


@given(st.floats(0, 1), st.integers(1, 500))
def test_wilson_stays_in_range_and_is_never_empty(share, count):
    bounds = wilson_interval(share, count)
    assert 0 <= bounds["low"] <= share <= bounds["high"] <= 1
    assert bounds["high"] > bounds["low"]


def test_no_observations_no_interval():
    assert all(math.isnan(bound) for bound in wilson_interval(math.nan, 0).values())
