"""Pairing: utilities → chosen / rejected. Knows nothing of text or models.

Shapes: B prompts, 2 completions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pairing", "gap_threshold", "pair_completions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Which completion of each prompt is chosen, and which prompts teach nothing, and why."""

    chosen: Tensor  # [B] int64: index of the chosen completion, 0 or 1
    active: Tensor  # [B] bool: trains
    ties: Tensor  # [B] bool: equal utilities
    duplicates: Tensor  # [B] bool: both completions are the same tokens
    undefined: Tensor  # [B] bool: a utility is NaN or infinite

    def order(self) -> Tensor:
        """Completion indices `[B, 2]`, chosen first."""
        return torch.stack([self.chosen, 1 - self.chosen], dim=-1)


def pair_completions(
    utilities: Tensor, *, duplicates: Tensor | None = None, tolerance: float = 0.0
) -> Pairing:
    """Chooses the completion of higher utility; a pair without a clear winner is inactive.

    Training a tie would teach an arbitrary order: with two identical completions the DPO
    gradient is exactly zero but the pair still weighs in the average, and with equal utilities
    of different texts it is noise.

    Args:
        utilities: `[B, 2]`.
        duplicates: `[B]` bool, prompts whose two completions are the same tokens.
        tolerance: Utilities at most this far apart tie, in utility units.

    Returns:
        The pairing. The reasons are exclusive, counted in the order duplicate, undefined, tie.
    """
    if duplicates is None:
        duplicates = torch.zeros(utilities.shape[0], dtype=torch.bool, device=utilities.device)
    undefined = ~utilities.isfinite().all(dim=-1) & ~duplicates  # [B]
    difference = utilities[:, 0] - utilities[:, 1]  # [B]
    ties = (difference.abs() <= tolerance) & ~duplicates & ~undefined
    return Pairing(
        chosen=(difference < 0).long(),
        active=~(duplicates | undefined | ties),
        ties=ties,
        duplicates=duplicates,
        undefined=undefined,
    )


def gap_threshold(gaps: Tensor, fraction: float) -> float:
    """The utility gap that the widest `fraction` of the pairs reach.

    Args:
        gaps: `[P]` chosen minus rejected utility of active pairs; NaN entries stand for no pair.
        fraction: In (0, 1]; at least one pair is always within it.

    Returns:
        The smallest gap still within the fraction; minus infinity when everything is.
    """
    known = gaps[~gaps.isnan()]
    if fraction >= 1 or not len(known):
        return float("-inf")
    count = max(1, round(fraction * len(known)))
    return float(known.topk(count).values[-1])
