"""The simplex: where objective weights live, and the ways to draw or lay them out.

Knows nothing of text or models. Shapes: B prompts, K objectives, W weight vectors of a sweep; of a
simplex that is cut into small ones, N lattice points and S small simplices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moodpo.errors import WeightsError

__all__ = [
    "antithetic_weights",
    "cube_to_simplex",
    "kronecker_points",
    "lattice_coordinates",
    "lattice_simplices",
    "sample_dirichlet",
    "simplex_corners",
    "simplex_lattice",
]

FRACTION_STEPS = 1 << 53  # fractions that float64 tells apart in [0, 1)


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


def kronecker_points(
    positions: Sequence[int], *, num_dimensions: int, shift: Sequence[float]
) -> Tensor:
    """Points of a shifted Kronecker sequence, which fill the unit cube more evenly than chance.

    `x_n = (shift + n · alpha) mod 1` with `alpha_j = phi^-j`, where `phi` solves
    `phi^(D + 1) = phi + 1` (Roberts 2018; the golden ratio for D = 1). Any n successive points are
    the first n, shifted, so no stretch of the sequence is worse than another by more than a shift
    makes it. With a uniform shift every single point is uniform (Cranley and Patterson 1976). The
    multiples of alpha are exact integers, so a late position is as good as an early one.

    Args:
        positions: N positions in the sequence, from 0.
        num_dimensions: D, at least 1.
        shift: D fractions in [0, 1).

    Returns:
        `[N, D]` in float64, in [0, 1).

    Raises:
        WeightsError: If there are not D fractions.
    """
    if num_dimensions < 1 or len(shift) != num_dimensions:
        raise WeightsError(
            f"A shift needs one fraction for each of at least 1 dimension; got {len(shift)} "
            f"fractions for {num_dimensions} dimensions."
        )
    phi = 1.0
    for _ in range(64):  # a contraction: each round at least halves the error
        phi = (1.0 + phi) ** (1.0 / (num_dimensions + 1))
    # Odd steps come back to where they were only after all FRACTION_STEPS positions.
    steps = [int(phi**-j * FRACTION_STEPS) | 1 for j in range(1, num_dimensions + 1)]
    starts = [int(fraction * FRACTION_STEPS) for fraction in shift]
    rows = [
        [(start + n * step) % FRACTION_STEPS for start, step in zip(starts, steps, strict=True)]
        for n in positions
    ]
    return torch.tensor(rows, dtype=torch.float64).view(-1, num_dimensions) / FRACTION_STEPS


def cube_to_simplex(points: Tensor) -> Tensor:
    """Maps the unit cube to the simplex so that uniform stays uniform.

    The inverse Rosenblatt (1952) transform of Dirichlet(1), by breaking a stick: objective k takes
    the share `1 - (1 - u_k)^(1 / (K - k))` of what objectives 1 to k - 1 have left, the quantile of
    Beta(1, K - k), and the last one takes the rest. For K = 2 the weights are `(u, 1 - u)`.

    Args:
        points: u `[..., K - 1]` in [0, 1].

    Returns:
        Weights `[..., K]` on the simplex, in the dtype of the points.
    """
    others = torch.arange(
        points.shape[-1], 0, -1, dtype=points.dtype, device=points.device
    )  # K - k
    left = (1.0 - points).pow(1.0 / others).cumprod(-1)  # [..., K - 1] after each objective
    whole = torch.ones_like(left[..., :1])
    return -torch.cat([whole, left, 0.0 * whole], dim=-1).diff(dim=-1)


def lattice_simplices(num_objectives: int, divisions: int) -> Tensor:
    """Cuts the simplex at its lattice into `divisions^(K - 1)` small ones of equal volume.

    The triangulation of Freudenthal (1942) and Kuhn (1960). Each small simplex is a path over K
    lattice points that moves one unit from each objective to the next one, once, in some order.
    For K = 2 these are the intervals between neighbors.

    Args:
        num_objectives: K, at least 2.
        divisions: H, at least 1.

    Returns:
        `[S, K]`: the rows of `simplex_lattice(K, H)` that are the corners of each small simplex.

    Raises:
        WeightsError: If an argument is too small.
    """
    if num_objectives < 2 or divisions < 1:
        raise WeightsError(
            "Small simplices need at least 2 objectives and 1 division; got "
            f"{num_objectives} objectives and {divisions} divisions."
        )
    moves = frozenset(range(num_objectives - 1))
    starts = _compositions(divisions, num_objectives)
    paths = [path for start in starts for path in _lattice_paths(start, moves)]
    return _lattice_rows(torch.tensor(paths), divisions)  # [S, K, K] → [S, K]


def lattice_coordinates(weights: Tensor, divisions: int) -> tuple[Tensor, Tensor]:
    """Writes weights as means of the lattice points around them.

    `w = Σ_j coordinates_j · lattice[rows_j]` over the corners of the small simplex of
    `lattice_simplices` that holds w. In the tail sums `t_j = H (w_j + ... + w_K)` the small
    simplices are those of the unit cubes, one for each order of the fractional parts, and the
    coordinates are the differences between these parts, sorted (Kuhn 1960).

    Args:
        weights: `[B, K]` on the simplex, K at least 2.
        divisions: H, at least 1.

    Returns:
        Rows of `simplex_lattice(K, H)`, `[B, K]`, and coordinates `[B, K]` in float64,
        non-negative, each row summing to 1.
    """
    tails = weights.double().flip(-1).cumsum(-1).flip(-1)[:, 1:]  # [B, K - 1], descending
    tails = (tails * divisions).clamp(max=float(divisions))
    corner = tails.floor().clamp(max=divisions - 1.0)
    parts, order = (tails - corner).sort(dim=-1, descending=True, stable=True)
    one = torch.ones_like(tails[:, :1])
    coordinates = -torch.cat([one, parts, 0.0 * one], dim=-1).diff(dim=-1)  # [B, K]
    steps = torch.nn.functional.one_hot(order, tails.shape[-1])  # [B, K - 1, K - 1]
    path = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], dim=1)  # [B, K, K - 1]
    path = path + corner.long()[:, None, :]  # tail sums of the K corners
    whole = torch.full_like(path[..., :1], divisions)
    points = -torch.cat([whole, path, 0 * whole], dim=-1).diff(dim=-1)  # [B, K, K]
    return _lattice_rows(points, divisions), coordinates


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


def _lattice_paths(
    point: tuple[int, ...], moves: frozenset[int]
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All paths from a lattice point through every move, of one unit from j to j + 1, once."""
    if not moves:
        yield (point,)
        return
    for j in sorted(moves):
        if point[j] > 0:
            after = (*point[:j], point[j] - 1, point[j + 1] + 1, *point[j + 2 :])
            for rest in _lattice_paths(after, moves - {j}):
                yield (point, *rest)


def _lattice_rows(points: Tensor, divisions: int) -> Tensor:
    """The rows `[...]` at which integer points `[..., K]` stand in `simplex_lattice(K, H)`."""
    num_objectives = points.shape[-1]
    lattice = torch.tensor(list(_compositions(divisions, num_objectives)), device=points.device)
    places = torch.arange(num_objectives - 1, -1, -1, device=points.device)
    digits = (divisions + 1) ** places  # numbers in this base are in lexicographic order
    return torch.searchsorted((lattice * digits).sum(-1), (points * digits).sum(-1))
