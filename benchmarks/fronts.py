"""Fronts: reward shapes whose best trade-offs are known, and how far points are from them.

Pure maths: knows nothing of text, models or training. Every objective maximizes. Shapes: N
positions, K objectives, W weight vectors, M answers per weight vector, F points of a front.

A position x lies on the simplex: x_k is how much of an answer goes to objective k. A shape turns
positions into K rewards between 0 and 1:

| shape | reward | front | linear weights w ask for |
|---|---|---|---|
| `convex` | `r_k = sqrt(x_k)` | the unit sphere, `Σ r_k² = 1` | `r = w / |w|` |
| `concave` | `r_k = x_k / (2 - x_k)` | caves in, `Σ 2 r_k / (1 + r_k) = 1` | a corner |
| `gaps` | `(x_1 / (2 - x_1), x_2 + sin(4π x_2) / 5)` | three pieces, caved in | four answers |
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from moodpo.core.scalarization import Scalarization, chebyshev, linear
from moodpo.evaluation.front import hypervolume, pareto_front

FloatArray = NDArray[np.float64]
Shape = Callable[[FloatArray], FloatArray]  # positions [N, K] -> rewards [N, K] in [0, 1]


def convex(positions: FloatArray) -> FloatArray:
    """The unit sphere: a front that bulges outwards, and that linear weights reach all of.

    Args:
        positions: `[N, K]`.

    Returns:
        Rewards `[N, K]`, `sqrt(x_k)`.
    """
    return np.sqrt(np.asarray(positions, dtype=np.float64))


def concave(positions: FloatArray) -> FloatArray:
    """A front that caves in: of it linear weights reach the corners only.

    Its slope is finite at the corners, where an augmented Chebyshev utility would otherwise give
    up on what is next to them.

    Args:
        positions: `[N, K]`.

    Returns:
        Rewards `[N, K]`, `x_k / (2 - x_k)`.
    """
    shares = np.asarray(positions, dtype=np.float64)
    rewards: FloatArray = shares / (2 - shares)
    return rewards


def gaps(positions: FloatArray) -> FloatArray:
    """A front of three pieces: between them, moving on costs the first and the second gains none.

    Args:
        positions: `[N, 2]`.

    Returns:
        Rewards `[N, 2]`: the first of `concave`, and `x_2 + sin(4π x_2) / 5`.
    """
    share = np.asarray(positions, dtype=np.float64)[..., 1]
    return np.stack([concave(1 - share), share + np.sin(4 * np.pi * share) / 5], axis=-1)


def utilities(
    rewards: ArrayLike, weights: ArrayLike, kind: Scalarization, *, ideal: ArrayLike
) -> FloatArray:
    """Utility of every answer under every weight vector.

    Args:
        rewards: `[N, K]`, or `[W, N, K]` with answers of their own for each weight vector.
        weights: `[W, K]`.
        kind: `linear` or augmented `chebyshev`.
        ideal: `[K]`, the best of each objective, for `chebyshev`.

    Returns:
        `[W, N]`.
    """
    values = torch.as_tensor(np.asarray(rewards, dtype=np.float64))
    requests = torch.as_tensor(np.asarray(weights, dtype=np.float64))[:, None]  # [W, 1, K]
    best = torch.as_tensor(np.asarray(ideal, dtype=np.float64))
    if kind == "linear":
        result: FloatArray = linear(values - best, requests).numpy()
    else:
        result = chebyshev(values, requests, ideal=best).numpy()
    return result


def asked_points(
    rewards: ArrayLike, weights: ArrayLike, kind: Scalarization, *, ideal: ArrayLike
) -> FloatArray:
    """What a policy that does exactly as it is asked obtains: the best answer for each weight.

    Args:
        rewards: `[N, K]` of every attainable answer.
        weights: `[W, K]`.
        kind: What weights ask for, see `utilities`.
        ideal: `[K]`.

    Returns:
        `[W, K]`; the first of equally good answers.
    """
    best = utilities(rewards, weights, kind, ideal=ideal).argmax(axis=1)  # [W]
    result: FloatArray = np.asarray(rewards, dtype=np.float64)[best]
    return result


def utility_share(obtained: ArrayLike, best: ArrayLike, worst: ArrayLike) -> float:
    """How much of what each weight vector could have was obtained, from 0 to 1 at best.

    Utilities are averaged over single answers: a coin flip between two corners is worth what the
    corners are worth, whatever their mean. A share of 1 means that every answer was the best.

    Args:
        obtained: Utilities `[W, M]` of the answers.
        best: `[W]`, of the best answer.
        worst: `[W]`, of the worst, which counts 0.

    Returns:
        The mean over the W weight vectors.
    """
    low, high = np.asarray(worst, np.float64), np.asarray(best, np.float64)
    return float(((np.asarray(obtained).mean(axis=1) - low) / (high - low)).mean())


def igd_plus(points: ArrayLike, front: ArrayLike) -> float:
    """IGD+: mean distance from the true front to what was reached (Ishibuchi et al. 2015, Eq. 19).

    `mean_f min_p |max(f - p, 0)|`: how much the nearest point lacks. A point that is better than
    the front point on some objective is not further away for it. Smaller is better; 0 if every
    front point is reached or surpassed.

    Args:
        points: p `[W, K]`, what was reached.
        front: f `[F, K]`, the true front.

    Returns:
        The distance, in the rewards' units.
    """
    reached, wanted = np.asarray(points, np.float64), np.asarray(front, np.float64)
    lacks = np.maximum(wanted[:, None] - reached[None], 0.0)  # [F, W, K]
    return float(np.linalg.norm(lacks, axis=-1).min(axis=1).mean())


def hypervolume_ratio(
    points: ArrayLike, optimum: ArrayLike, *, reference_point: ArrayLike
) -> float:
    """Hypervolume of the points as a share of the optimum's.

    Args:
        points: `[W, K]`.
        optimum: `[W, K]`, see `asked_points`.
        reference_point: `[K]`, the worst that still counts.
    """
    volumes = [hypervolume(p, reference_point=reference_point) for p in (points, optimum)]
    return volumes[0] / volumes[1]


def typical_answers(rewards: ArrayLike) -> FloatArray:
    """The medoid of the answers to each weight: the one nearest to all others in total.

    An answer that was really given, where a mean may be what no answer ever was: a policy that
    flips a coin between two corners has its mean in the middle, and its typical answer in a
    corner. Unlike a mean it can therefore not lie beyond a front that caves in.

    Args:
        rewards: `[W, M, K]`.

    Returns:
        `[W, K]`; the first of equally typical answers.
    """
    answers = np.asarray(rewards, dtype=np.float64)
    between = np.linalg.norm(answers[:, :, None] - answers[:, None], axis=-1)  # [W, M, M]
    typical = between.sum(axis=-1).argmin(axis=-1)  # [W]
    return answers[np.arange(len(answers)), typical]


def true_front(rewards: ArrayLike) -> FloatArray:
    """The distinct best trade-offs `[F, K]` among attainable rewards `[N, K]`."""
    return np.unique(pareto_front(rewards), axis=0)
