"""Draws: which objective weights each training prompt is given.

A draw is a function of seeds alone, so that neither the number of processes nor accumulation
changes it. Knows nothing of prompts, models or processes. Shapes: B prompts, M weight vectors that
each is sampled under, L that it is labeled under, K objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from moodpo.core.seeds import derive_seed
from moodpo.core.simplex import antithetic_weights, sample_dirichlet

__all__ = ["Draw", "dirichlet_draw", "draw_labels"]

Draw: TypeAlias = Callable[[Sequence[int]], Tensor]
"""Weights `[B, K]` in float32 of B seeds, each row a function of its own seed."""


def dirichlet_draw(concentration: float | Sequence[float], num_objectives: int) -> Draw:
    """Independent draws w ~ Dirichlet(concentration) (MO-ODPO, Gupta et al. 2025).

    Args:
        concentration: One value for all objectives, or K; 1 is uniform, below 1 favors corners.
        num_objectives: K.

    Raises:
        WeightsError: If the concentration is not positive or has another length than K.
    """
    values = [concentration] if isinstance(concentration, (int, float)) else list(concentration)
    alpha = values[0] if len(values) == 1 else tuple(values)

    def draw_one(generator: torch.Generator) -> Tensor:
        return sample_dirichlet(
            alpha, num_samples=1, num_objectives=num_objectives, generator=generator
        )[0]

    draw_one(torch.Generator())  # refuses an impossible concentration

    def draw(seeds: Sequence[int]) -> Tensor:
        rows = [draw_one(torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows) if rows else torch.zeros(0, num_objectives)

    return draw


def draw_labels(
    draw: Draw, indices: Sequence[int], key: tuple[int | str, ...], *, count: int
) -> Tensor:
    """The weight vectors of each prompt: a draw, its opposite, another draw, its opposite, ...

    Args:
        draw: Draws one vector per seed.
        indices: B places in the global batch, which key the randomness.
        key: What makes this batch differ from every other.
        count: L, how many of the sequence.

    Returns:
        `[B, L, K]`.
    """
    sequence: list[Tensor] = []
    for number in range(count):
        if number % 2:
            sequence.append(antithetic_weights(sequence[-1]))
            continue
        stream = ("w", number) if number else ("w",)
        sequence.append(draw([derive_seed(*key, *stream, i) for i in indices]))
    return torch.stack(sequence, dim=1)
