from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moodpo.errors import InputError
from moodpo.evaluation.front import (
    REFERENCE_MARGIN,
    default_reference_point,
    expected_utility,
    front_hypervolume,
    hypervolume,
    is_non_dominated,
    maximum_utility_loss,
    mean_utility,
    normalize_points,
    pareto_front,
    reward_statistics,
    sparsity,
    spread,
)

STAIRS = np.array([[0.0, 3.0], [1.0, 2.0], [3.0, 0.0], [1.0, 1.0]])  # the last is dominated


@st.composite
def point_sets(draw, max_points=8, max_objectives=4):
    """Points on a coarse grid, so that ties and copies are common."""
    shape = (draw(st.integers(1, max_points)), draw(st.integers(1, max_objectives)))
    return draw(hnp.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float)))


def dominates(p, q):
    return all(a >= b for a, b in zip(p, q, strict=True)) and any(
        a > b for a, b in zip(p, q, strict=True)
    )


def slow_front_mask(points):
    return [not any(dominates(other, point) for other in points) for point in points]


def slow_hypervolume(points, reference):
    """Inclusion and exclusion over all subsets of boxes."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            corner = [min(column) for column in zip(*subset, strict=True)]
            sides = [max(0.0, c - r) for c, r in zip(corner, reference, strict=True)]
            total += (-1) ** (size + 1) * math.prod(sides)
    return total


def slow_sparsity(points):
    front = {tuple(p) for p, kept in zip(points, slow_front_mask(points), strict=True) if kept}
    if len(front) < 2:
        return math.nan
    total = 0.0
    for column in zip(*front, strict=True):
        ordered = sorted(column)
        total += sum((b - a) ** 2 for a, b in itertools.pairwise(ordered))
    return total / (len(front) - 1)


def test_is_non_dominated_by_hand():
    assert is_non_dominated(STAIRS).tolist() == [True, True, True, False]


def test_copies_of_a_front_point_are_kept():
    assert is_non_dominated([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]).tolist() == [True, True, False]


@given(point_sets())
def test_is_non_dominated_agrees_with_brute_force(points):
    assert is_non_dominated(points).tolist() == slow_front_mask(points.tolist())


@given(point_sets(), st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_order(points, random):
    order = list(range(len(points)))
    random.shuffle(order)
    assert is_non_dominated(points[order]).tolist() == is_non_dominated(points)[order].tolist()
    front, shuffled = pareto_front(points), pareto_front(points[order])
    assert sorted(front.tolist()) == sorted(shuffled.tolist())


def test_pareto_front_keeps_the_order():
    assert pareto_front(STAIRS).tolist() == STAIRS[:3].tolist()


def test_hypervolume_by_hand():
    # Above (-1, -1): columns of width 1, 1, 2 and heights 4, 3, 1.
    assert hypervolume(STAIRS, reference_point=[-1.0, -1.0]) == pytest.approx(4 + 3 + 2)


def test_hypervolume_maximizes():
    assert hypervolume([[2.0, 3.0]], reference_point=[0.0, 0.0]) == pytest.approx(6.0)
    assert hypervolume([[-2.0, -3.0]], reference_point=[0.0, 0.0]) == 0.0


def test_hypervolume_of_nothing_is_zero():
    assert hypervolume(np.empty((0, 2)), reference_point=[0.0, 0.0]) == 0.0


@given(point_sets(max_points=6))
def test_hypervolume_agrees_with_inclusion_exclusion(points):
    reference = [-1.0] * points.shape[1]
    expected = slow_hypervolume(points.tolist(), reference)
    assert hypervolume(points, reference_point=reference) == pytest.approx(expected, abs=1e-9)


@given(point_sets(), st.data())
def test_a_dominated_point_changes_nothing(points, data):
    below = points[data.draw(st.integers(0, len(points) - 1))] - np.array(
        data.draw(st.lists(st.floats(0.5, 2), min_size=points.shape[1], max_size=points.shape[1]))
    )
    more, reference = np.vstack([points, below]), np.full(points.shape[1], -4.0)
    assert not is_non_dominated(more)[-1]
    assert pareto_front(more).tolist() == pareto_front(points).tolist()
    assert hypervolume(more, reference_point=reference) == pytest.approx(
        hypervolume(points, reference_point=reference), rel=1e-12
    )
    assert spread(more) == spread(points)
    assert sparsity(more) == pytest.approx(sparsity(points), nan_ok=True)


@given(point_sets(), st.floats(0.1, 10.0))
def test_hypervolume_scales_with_each_objective(points, factor):
    reference = np.full(points.shape[1], -4.0)
    factors = np.ones(points.shape[1])
    factors[0] = factor
    assert hypervolume(points * factors, reference_point=reference * factors) == pytest.approx(
        factor * hypervolume(points, reference_point=reference), rel=1e-9
    )


@given(point_sets())
def test_normalization_divides_the_hypervolume(points):
    K = points.shape[1]
    mean, std = np.linspace(-1, 1, K), np.linspace(0.5, 2, K)
    reference = np.full(K, -9.0)
    raw = hypervolume(points, reference_point=reference * std + mean)
    normalized = front_hypervolume(points, mean=mean, std=std, reference_point=reference)
    assert normalized == pytest.approx(raw / np.prod(std), rel=1e-9)


@given(point_sets())
def test_inputs_are_not_changed(points):
    K = points.shape[1]
    weights, reference = np.full(points.shape, 1 / K), np.full(K, -4.0)
    before = points.copy(), weights.copy(), reference.copy()
    for array in (points, weights, reference):
        array.setflags(write=False)
    pareto_front(points)
    hypervolume(points, reference_point=reference)
    mean_utility(points, weights)
    expected_utility(points, weights)
    maximum_utility_loss(points, weights)
    sparsity(points)
    spread(points)
    normalize_points(points, reference, np.ones(K))
    after = points, weights, reference
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad):
    points = STAIRS.copy()
    points[1, 0] = bad
    with pytest.raises(InputError, match="finite"):
        hypervolume(points, reference_point=[-1.0, -1.0])
    with pytest.raises(InputError, match="finite"):
        is_non_dominated(points)
    with pytest.raises(InputError, match="reference_point must be 2 finite numbers"):
        hypervolume(STAIRS, reference_point=[bad, 0.0])


def test_shapes_are_checked():
    with pytest.raises(InputError, match=r"shape \[W, K\]"):
        is_non_dominated([1.0, 2.0])
    with pytest.raises(InputError, match="reference_point must be 2"):
        hypervolume(STAIRS, reference_point=[0.0])
    with pytest.raises(InputError, match="one shape"):
        mean_utility(STAIRS, STAIRS[:2])
    with pytest.raises(InputError, match="2 objectives but weights have 3"):
        expected_utility(STAIRS, np.ones((1, 3)))
    with pytest.raises(InputError, match="empty"):
        spread(np.empty((0, 2)))


def test_normalize_points_by_hand():
    normalized = normalize_points([[3.0, -2.0]], mean=[1.0, 0.0], std=[2.0, 4.0])
    assert normalized.tolist() == [[1.0, -0.5]]


@pytest.mark.parametrize("std", [[0.0, 1.0], [-1.0, 1.0], [math.nan, 1.0]])
def test_a_std_that_is_no_scale_is_refused(std):
    with pytest.raises(InputError, match="std"):
        normalize_points(STAIRS, mean=[0.0, 0.0], std=std)


def test_reward_statistics_skip_gaps_and_keep_constants_raw():
    rewards = np.array([[[1.0, 0.1, math.nan]], [[3.0, 0.1, math.nan]]])
    mean, std = reward_statistics(rewards)
    assert mean.tolist() == pytest.approx([2.0, 0.1, 0.0])
    assert std.tolist() == [1.0, 1.0, 1.0]
    mean, std = reward_statistics(np.array([[[1.0], [math.nan]], [[5.0], [3.0]]]))
    assert mean[0] == pytest.approx(3.0)
    assert std[0] == pytest.approx(math.sqrt(8 / 3))


def test_the_default_reference_point_lies_below_the_base_model():
    reference = default_reference_point([[0.2, 0.0], [-0.1, 0.3]])
    assert reference.tolist() == pytest.approx([-0.1 - REFERENCE_MARGIN, -REFERENCE_MARGIN])


def test_utilities_by_hand():
    points, weights = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.25, 0.75]])
    # Asked: 2 and 0.75. Best of the set: 2 and max(0.5, 0.75).
    assert mean_utility(points, weights) == pytest.approx((2 + 0.75) / 2)
    assert expected_utility(points, weights) == pytest.approx((2 + 0.75) / 2)
    assert maximum_utility_loss(points, weights) == pytest.approx(0.0)
    # Answers swapped: asking for the first objective brings the second.
    assert maximum_utility_loss(points[::-1], weights) == pytest.approx(2.0)
    better = [[3.0, 3.0]]
    assert maximum_utility_loss(points, weights, candidates=better) == pytest.approx(2.25)


@given(point_sets(), st.data())
def test_asking_is_never_better_than_picking(points, data):
    raw = data.draw(hnp.arrays(np.float64, points.shape, elements=st.floats(0.01, 1)))
    weights = raw / raw.sum(axis=1, keepdims=True)
    slow = sum(
        max(sum(w * s for w, s in zip(row, point, strict=True)) for point in points.tolist())
        for row in weights.tolist()
    ) / len(points)
    assert expected_utility(points, weights) == pytest.approx(slow, abs=1e-12)
    assert mean_utility(points, weights) <= expected_utility(points, weights) + 1e-12
    assert maximum_utility_loss(points, weights) >= -1e-12


def test_sparsity_and_spread_by_hand():
    # Front (0,3) (1,2) (3,0): gaps 1, 2 in both objectives.
    assert sparsity(STAIRS) == pytest.approx((1 + 4 + 1 + 4) / 2)
    assert spread(STAIRS) == pytest.approx(3 * math.sqrt(2))
    assert math.isnan(sparsity([[1.0, 1.0], [1.0, 1.0]]))
    assert spread([[1.0, 1.0]]) == 0.0


@given(point_sets())
def test_sparsity_agrees_with_plain_python(points):
    assert sparsity(points) == pytest.approx(slow_sparsity(points.tolist()), nan_ok=True)
