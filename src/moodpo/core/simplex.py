"""The simplex: where objective weights live, and the ways to draw or lay them out.

Knows nothing of text or models. Shapes: B prompts, K objectives, W weight vectors of a sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moodpo.errors import WeightsError

__all__ = [
    "antithetic_weights",
    "sample_dirichlet",
    "simplex_corners",
    "simplex_lattice",
]


def sample_dirichlet(
    concentration: float | Sequence[float],
    *,
    num_samples: int,
    num_objectives: int,
    generator: torch.Generator,
) -> Tensor:
    """Draws weights w ~ Dirichlet(concentration) (MO-ODPO, Gupta et al. 2025).

    A Dirichlet draw is a vector of independent Gamma draws divided by its sum. Small
    concentrations underflow float32 Gammas to an all-zero vector, so the draw is in float64 and
    in logarithms: Gamma(a) = Gamma(a + 1) * U^(1/a) (Marsaglia and Tsang 2000, section 6).

    Args:
        concentration: One value for all objectives, or one per objective; above 0. 1 is uniform
            over the simplex, below 1 favors corners, above 1 the center.
        num_samples: B, how many weight vectors.
        num_objectives: K, at least 2.
        generator: The source of randomness.

    Returns:
        Weights `[B, K]` in float32, non-negative, each row summing to 1.

    Raises:
        WeightsError: If the concentration is not positive or has another length than K.
    """
    shape = _concentration_vector(concentration, num_objectives)  # [K]
    shapes = shape.expand(num_samples, num_objectives)  # [B, K]
    log_gamma = torch._standard_gamma(shapes + 1.0, generator=generator).log()
    uniform = torch.rand(shapes.shape, generator=generator, dtype=torch.float64)
    log_gamma = log_gamma + uniform.clamp_min(torch.finfo(torch.float64).tiny).log() / shapes
    return log_gamma.softmax(dim=-1).float()


def simplex_lattice(num_objectives: int, divisions: int) -> Tensor:
    """The simplex lattice of Das and Dennis (1998): all weights that are multiples of 1/divisions.

    Args:
        num_objectives: K, at least 1.
        divisions: H, at least 1. K = 2 gives H + 1 points; K = 3 gives (H + 1)(H + 2) / 2.

    Returns:
        Weights `[W, K]` in float32 in lexicographic order, W = C(H + K - 1, K - 1).

    Raises:
        WeightsError: If either argument is below 1.
    """
    if num_objectives < 1 or divisions < 1:
        raise WeightsError(
            f"A simplex lattice needs at least 1 objective and 1 division; got {num_objectives} "
            f"objectives and {divisions} divisions. Pass positive integers."
        )
    rows = list(_compositions(divisions, num_objectives))
    return torch.tensor(rows, dtype=torch.float32) / divisions


def simplex_corners(num_objectives: int) -> Tensor:
    """The corners of the simplex: each objective alone.

    Args:
        num_objectives: K.

    Returns:
        The identity `[K, K]`: row k gives all weight to objective k.
    """
    return torch.eye(num_objectives)


def antithetic_weights(weights: Tensor) -> Tensor:
    """Opposite weights: what mattered most now matters least.

    Reflects each vector within its own range, `m = max(w) + min(w) - w`, and normalizes. The
    reflection is the one map `a - w` that keeps the range, and it reverses the order. Its sum is
    `K (max + min) - 1`, above 0 because the largest of K weights is above 1/K or all are 1/K. For
    K = 2 the sum is 1, and the opposite is exactly `1 - w`. For K > 2 normalizing scales the range,
    but the reflection commutes with scaling and is its own inverse, so opposites are mutual: the
    opposite of the opposite is `w`. A corner and an even split of the other objectives are
    opposites, and the center is its own. (Ours.)

    Args:
        weights: `[..., K]` on the simplex.

    Returns:
        Weights of the same shape, on the simplex.
    """
    mirrored = weights.amax(-1, keepdim=True) + weights.amin(-1, keepdim=True) - weights
    # All-zero rows have no opposite; they stay as they are.
    total = mirrored.sum(-1, keepdim=True)
    return mirrored / torch.where(total > 0, total, torch.ones_like(total))


def _concentration_vector(concentration: float | Sequence[float], num_objectives: int) -> Tensor:
    values = torch.as_tensor(concentration, dtype=torch.float64).flatten()
    if values.numel() not in (1, num_objectives):
        raise WeightsError(
            f"concentration has {values.numel()} entries but there are {num_objectives} objectives."
            " Pass one value for all of them or one per objective."
        )
    if not bool((values > 0).all() and values.isfinite().all()):
        raise WeightsError(
            f"concentration must be positive and finite; got {values.tolist()}. "
            "1 is uniform over the simplex, below 1 favors corners."
        )
    return values.expand(num_objectives)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of `parts` non-negative integers."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
