"""The front: which trade-offs were reached, and how good the set of them is.

Pure functions of points; knows nothing of prompts, models or files. Every objective maximizes,
always: there is no direction to guess and none to pass. Inputs are never changed. Shapes:
W points, one per weight vector of a sweep; K objectives; M points of another set.

Normalized units. Hypervolume, utilities, sparsity and spread add or multiply objectives, so they
are measured on normalized points, `(raw - mean) / std`, with the mean and the standard deviation
per objective of the **base model's** per-prompt rewards under the same prompts, weights and
seeds. 0 is then "as good as the base model", 1 is "better by one standard deviation between
answers".

Reference point. Hypervolume needs a point below which nothing counts. The default is the base
model's lowest mean over the weights minus `REFERENCE_MARGIN` (one standard deviation), per
objective: an answer that is worse than the base model by that much on any objective is of no use
however good it is on the others. It depends on the base model alone, so every policy of one base
model is measured against the same point (Ishibuchi et al. 2018 show how a point that follows the
front changes rankings), and it is written into the result.

| measure | better | source |
|---|---|---|
| `hypervolume` | larger | Zitzler and Thiele 1998; computed by moocore |
| `mean_utility` | larger | MIP, mean of `w·s`, of MI-EPO, arXiv 2607.01392 |
| `expected_utility` | larger | Zintgraf et al. 2015; Hayes et al. 2022 |
| `maximum_utility_loss` | smaller, 0 at best | Zintgraf et al. 2015 |
| `sparsity` | smaller | Xu et al. 2020 (PGMORL) |
| `spread` | larger | maximum spread M3*, Zitzler et al. 2000 |
"""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from moodpo.errors import InputError
from moodpo.evaluation.results import FloatArray

__all__ = [
    "REFERENCE_MARGIN",
    "default_reference_point",
    "expected_utility",
    "front_hypervolume",
    "hypervolume",
    "is_non_dominated",
    "maximum_utility_loss",
    "mean_utility",
    "normalize_points",
    "pareto_front",
    "reward_statistics",
    "sparsity",
    "spread",
]

REFERENCE_MARGIN = 1.0
"""How far below the base model's lowest means the default reference point lies, in std units."""


def is_non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    A point dominates another if it is at least as good on every objective and better on one.
    Equal points do not dominate each other: all copies of a front point are kept.

    Args:
        points: `[W, K]`, all objectives maximize.

    Returns:
        `[W]` bool.

    Raises:
        InputError: If the points are not a finite `[W, K]` array.
    """
    values = _points(points)
    count = len(values)
    at_least = np.ones((count, count), dtype=bool)  # [i, j]: i is as good as j everywhere so far
    above = np.zeros((count, count), dtype=bool)  # [i, j]: i is better than j somewhere
    for column in values.T:
        at_least &= column[:, None] >= column[None, :]
        above |= column[:, None] > column[None, :]
    dominated: NDArray[np.bool_] = np.any(at_least & above, axis=0)
    return ~dominated


def pareto_front(points: ArrayLike) -> FloatArray:
    """The non-dominated points, in their order, copies included.

    Args:
        points: `[W, K]`, all objectives maximize.

    Returns:
        `[F, K]` with F ≤ W.

    Raises:
        InputError: If the points are not a finite `[W, K]` array.
    """
    values = _points(points)
    return values[is_non_dominated(values)]


def hypervolume(points: ArrayLike, /, *, reference_point: ArrayLike) -> float:
    """Volume between the reference point and the points (Zitzler and Thiele 1998).

    Points that are not above the reference on every objective add nothing; neither do dominated
    ones. An empty set has volume 0.

    Args:
        points: `[W, K]`, all objectives maximize, in units that may be multiplied (normalized).
        reference_point: `[K]`, the worst that still counts.

    Returns:
        The volume, in the product of the objectives' units.

    Raises:
        InputError: If anything is not finite or the shapes disagree.
    """
    values = _points(points)
    reference = _vector("reference_point", reference_point, values.shape[1])
    # moocore reads NaN as a number and minimizes by default: both are settled here.
    return float(moocore.hypervolume(values, ref=reference, maximise=True))


def front_hypervolume(
    points: ArrayLike, /, *, mean: ArrayLike, std: ArrayLike, reference_point: ArrayLike
) -> float:
    """Hypervolume of raw points after normalization.

    Args:
        points: `[W, K]` raw mean rewards.
        mean: `[K]` of the base model's rewards, raw.
        std: `[K]` of the base model's rewards, above 0.
        reference_point: `[K]` in normalized units.

    Returns:
        The volume in products of standard deviations.

    Raises:
        InputError: If anything is not finite, a std is not positive or the shapes disagree.
    """
    return hypervolume(normalize_points(points, mean, std), reference_point=reference_point)


def normalize_points(points: ArrayLike, mean: ArrayLike, std: ArrayLike) -> FloatArray:
    """Raw points to normalized units, `(points - mean) / std`.

    Args:
        points: `[..., K]` raw.
        mean: `[K]`.
        std: `[K]`, above 0.

    Returns:
        The same shape.

    Raises:
        InputError: If mean or std is not a finite `[K]` vector, or a std is not positive.
    """
    values = np.asarray(points, dtype=np.float64)
    center = _vector("mean", mean, values.shape[-1])
    scale = _vector("std", std, values.shape[-1])
    if not (scale > 0).all():
        raise InputError(f"std must be above 0; got {scale.tolist()}. A constant reward has none.")
    normalized: FloatArray = (values - center) / scale
    return normalized


def reward_statistics(rewards: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation per objective over all answers: the normalized units.

    Args:
        rewards: `[W, N, K]` raw rewards of the base model, NaN where there is no score.

    Returns:
        Mean `[K]` and standard deviation `[K]` (population). An objective without any score has
        mean 0, and one without variation has standard deviation 1, so that units stay raw there.
    """
    values = np.asarray(rewards, dtype=np.float64)
    values = values.reshape(-1, values.shape[-1])  # [W*N, K]
    present = ~np.isnan(values)
    counts = np.maximum(present.sum(axis=0), 1)
    mean: FloatArray = np.where(present, values, 0.0).sum(axis=0) / counts
    squares = np.where(present, values - mean, 0.0) ** 2
    std = np.sqrt(squares.sum(axis=0) / counts)
    # A constant column leaves rounding dust, which must not become a unit.
    return mean, np.where(std > 1e-12 * np.maximum(np.abs(mean), 1.0), std, 1.0)


def default_reference_point(baseline_points: ArrayLike) -> FloatArray:
    """The base model's lowest mean per objective minus `REFERENCE_MARGIN`.

    Args:
        baseline_points: `[W, K]` mean rewards of the base model in normalized units.

    Returns:
        `[K]` in normalized units.

    Raises:
        InputError: If the points are not a finite, non-empty `[W, K]` array.
    """
    values = _some_points(baseline_points)
    lowest: FloatArray = values.min(axis=0) - REFERENCE_MARGIN
    return lowest


def mean_utility(points: ArrayLike, weights: ArrayLike) -> float:
    """Mean of `w·s(w)`: what a user gets who asks for what he wants (MI-EPO's MIP).

    Args:
        points: s `[W, K]`, what each request obtained, normalized.
        weights: w `[W, K]`, the requests.

    Returns:
        The mean over the W requests.

    Raises:
        InputError: If anything is not finite or the shapes disagree.
    """
    values, requests = _matched(points, weights)
    return float((values * requests).sum(axis=1).mean())


def expected_utility(points: ArrayLike, weights: ArrayLike) -> float:
    """Mean over the weights of the best `w·s` in the set (Zintgraf et al. 2015).

    Unlike `mean_utility` it lets every user pick from the whole set: the difference is what
    steering loses.

    Args:
        points: `[M, K]`, the set, normalized.
        weights: `[W, K]`, the users.

    Returns:
        The mean over the W users.

    Raises:
        InputError: If anything is not finite, the set is empty or K disagrees.
    """
    return float(_best_utilities(points, weights).mean())


def maximum_utility_loss(
    points: ArrayLike, weights: ArrayLike, *, candidates: ArrayLike | None = None
) -> float:
    """The most that any user loses by asking for his own weights.

    `max_w ( max_c w·c - w·s(w) )` over candidates c. With the points themselves as candidates
    (the default) it is 0 exactly if no user does better by asking for other weights than his own;
    with another policy's front it is Zintgraf et al.'s loss against that front.

    Args:
        points: s `[W, K]`, what each request obtained, normalized.
        weights: w `[W, K]`, the requests.
        candidates: c `[M, K]`, normalized; the points when None.

    Returns:
        The loss; negative only where the points beat every candidate.

    Raises:
        InputError: If anything is not finite or the shapes disagree.
    """
    values, requests = _matched(points, weights)
    best = _best_utilities(values if candidates is None else candidates, requests)  # [W]
    return float((best - (values * requests).sum(axis=1)).max())


def sparsity(points: ArrayLike) -> float:
    """Mean squared gap between neighbors on the front (Xu et al. 2020).

    `1 / (F - 1) Σ_k Σ_i (s_k(i) - s_k(i + 1))²` with each objective sorted by itself, over the F
    distinct front points (copies would only dilute the mean).

    Args:
        points: `[W, K]`, normalized; dominated points are left out.

    Returns:
        The sparsity, smaller for a denser front; NaN for fewer than two distinct front points.

    Raises:
        InputError: If the points are not a finite `[W, K]` array.
    """
    front = np.unique(pareto_front(points), axis=0)
    if len(front) < 2:
        return float("nan")
    gaps = np.diff(np.sort(front, axis=0), axis=0)  # [F - 1, K]
    return float((gaps**2).sum() / (len(front) - 1))


def spread(points: ArrayLike) -> float:
    """Diagonal of the box around the front (maximum spread, Zitzler et al. 2000).

    Args:
        points: `[W, K]`, normalized; dominated points are left out.

    Returns:
        The length, 0 for a single point.

    Raises:
        InputError: If the points are not a finite, non-empty `[W, K]` array.
    """
    front = pareto_front(_some_points(points))
    return float(np.linalg.norm(front.max(axis=0) - front.min(axis=0)))


def _best_utilities(points: ArrayLike, weights: ArrayLike) -> FloatArray:
    values, requests = _some_points(points), _some_points(weights, "weights")
    if values.shape[1] != requests.shape[1]:
        raise InputError(
            f"points have {values.shape[1]} objectives but weights have {requests.shape[1]}."
        )
    best: FloatArray = (requests @ values.T).max(axis=1)
    return best


def _matched(points: ArrayLike, weights: ArrayLike) -> tuple[FloatArray, FloatArray]:
    values, requests = _some_points(points), _some_points(weights, "weights")
    if values.shape != requests.shape:
        raise InputError(
            f"points {list(values.shape)} and weights {list(requests.shape)} must have one shape: "
            "row i of the points is what weights i obtained."
        )
    return values, requests


def _some_points(points: ArrayLike, name: str = "points") -> FloatArray:
    values = _points(points, name)
    if not len(values):
        raise InputError(f"{name} is empty; pass at least one row.")
    return values


def _points(points: ArrayLike, name: str = "points") -> FloatArray:
    values = np.array(points, dtype=np.float64)  # a copy: nothing below can change the input
    if values.ndim != 2 or values.shape[1] == 0:
        raise InputError(f"{name} must have shape [W, K]; got {list(values.shape)}.")
    if not np.isfinite(values).all():
        raise InputError(
            f"{name} must be finite; got NaN or infinity in {(~np.isfinite(values)).sum()} of "
            f"{values.size} entries. Leave out objectives or weights without any score."
        )
    return values


def _vector(name: str, vector: ArrayLike, size: int) -> FloatArray:
    values = np.array(vector, dtype=np.float64)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise InputError(f"{name} must be {size} finite numbers; got {values.tolist()}.")
    return values
