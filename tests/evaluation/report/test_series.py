from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.synthetic_results import make_result
from moodpo.errors import ManifestError
from moodpo.evaluation.front import pareto_front
from moodpo.evaluation.report import series as series_module
from moodpo.evaluation.report.series import (
    NEUTRAL_COLOR,
    Series,
    baseline_series,
    objective_colors,
    path_order,
    series_colors,
    staircase,
    sweep_series,
    weight_colors,
)
from moodpo.evaluation.statistics import front_metrics

PAPERS = ("#ffffff", "#15181c")  # the report's light and dark pages
small_points = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 8), st.just(2)), elements=st.integers(-3, 3).map(float)
)


def luminance(color: str) -> float:
    encoded = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in encoded]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def make_series(weights: list[list[float]], rewards: list[list[list[float]]]) -> Series:
    objectives = tuple("abc"[: len(weights[0])])
    return Series(
        name="s", objectives=objectives, weights=np.array(weights), rewards=np.array(rewards)
    )


def test_points_are_means_of_the_present_scores() -> None:
    estimate = make_series([[1, 0]], [[[1.0, 10.0], [3.0, np.nan], [5.0, 20.0]]]).points()
    np.testing.assert_allclose(estimate.mean, [[3.0, 15.0]])
    assert (estimate.low < estimate.mean).all()
    assert (estimate.mean < estimate.high).all()


def test_a_single_score_has_no_interval_and_none_has_no_mean() -> None:
    estimate = make_series([[1, 0]], [[[1.0, np.nan], [np.nan, np.nan]]]).points()
    np.testing.assert_array_equal(estimate.mean, [[1.0, np.nan]])
    assert np.isnan(estimate.low).all()
    assert np.isnan(estimate.high).all()


def test_intervals_are_those_of_the_metrics() -> None:
    result = make_result(3, 2, analyzed=False)
    estimate = sweep_series(result).points()
    rows = front_metrics(result)["points"]
    for w, k in itertools.product(range(result.num_weights), range(3)):
        bounds = rows[w][k]
        got = estimate.mean[w, k], estimate.low[w, k], estimate.high[w, k]
        assert got == pytest.approx((bounds["value"], bounds["low"], bounds["high"]))


def test_a_curve_averages_the_weights_that_share_a_place() -> None:
    weights = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    rewards = [[[4.0, 0, 0]] * 2, [[1.0, 0, 0]] * 2, [[2.0, 0, 0]] * 2]
    places, estimate = make_series(weights, rewards).curve(0)
    np.testing.assert_allclose(places, [0.0, 1.0])
    np.testing.assert_allclose(estimate.mean, [1.5, 4.0])


def test_scattered_weights_of_many_objectives_are_gathered_into_tenths() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(5), size=38)
    result = make_result(5, weights=weights, analyzed=False)
    places, estimate = sweep_series(result).curve(2)
    assert len(places) == len(np.unique(np.round(weights[:, 2], 1)))
    assert (np.diff(places) > 0).all()
    assert np.isfinite(estimate.low).all()


def test_two_objectives_keep_every_place() -> None:
    result = make_result(2, 20, analyzed=False)
    assert len(sweep_series(result).curve(0)[0]) == 21


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"rewards \[1, 2, 3\]"):
        Series(name="s", objectives=("a", "b"), weights=np.ones((1, 2)), rewards=np.ones((1, 2, 3)))


def test_names_and_baseline_come_from_the_result() -> None:
    result = make_result(name="mine", analyzed=False)
    baseline = baseline_series(result)
    assert sweep_series(result).name == "mine"
    assert sweep_series(result, "other").name == "other"
    assert baseline is not None
    assert baseline.name == "base model"
    assert baseline_series(make_result(analyzed=False, baseline=None)) is None


def test_the_path_starts_at_the_first_objective() -> None:
    weights = np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [0.75, 0.25]])
    assert path_order(weights) == [2, 3, 0, 1]


def test_staircase_by_hand() -> None:
    points = np.array([[0.0, 3.0], [1.0, 2.0], [1.0, 1.0], [2.0, 2.0], [3.0, 0.0], [np.nan, 9.0]])
    np.testing.assert_array_equal(staircase(points), [[0.0, 3.0], [2.0, 2.0], [3.0, 0.0]])
    assert staircase(np.full((2, 2), np.nan)).shape == (0, 2)


@given(small_points)
def test_staircase_is_the_pareto_front_without_copies(points: np.ndarray) -> None:
    np.testing.assert_array_equal(staircase(points), np.unique(pareto_front(points), axis=0))


def test_corners_have_their_objectives_colors() -> None:
    for K in (1, 2, 3, 5):
        assert weight_colors(np.eye(K)) == objective_colors(K)


def test_the_ramp_is_perceptually_even_and_never_darkens() -> None:
    steps = np.linspace(0, 1, 21)
    colors = weight_colors(np.stack([1 - steps, steps], axis=1))
    lab = np.array([series_module._to_oklab(color) for color in colors])
    distances = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert distances.max() < 1.4 * distances.min()
    assert (np.diff(lab[:, 0]) > -0.003).all()  # rounding to 8 bits


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6).map(lambda w: np.array([w]) / sum(w)))
def test_every_mixture_is_visible_on_both_pages(weights: np.ndarray) -> None:
    color = weight_colors(weights)[0]
    assert min(contrast(color, paper) for paper in PAPERS) >= 3.0


def test_named_colors_are_visible_and_distinct() -> None:
    colors = [*objective_colors(8), NEUTRAL_COLOR]
    assert len(set(colors)) == 9
    assert min(contrast(color, paper) for color in colors for paper in PAPERS) >= 3.0
    assert objective_colors(9)[8] == objective_colors(1)[0]
    assert series_colors(3) == [NEUTRAL_COLOR, *objective_colors(2)]
