"""Bounds: answers that reach what was asked for first, answers that do not behind them.

Knows nothing of text or models. Shapes: B prompts, L weight vectors each, G completions, K
objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["feasible_first", "violations"]


def violations(rewards: Tensor, bounds: Tensor) -> Tensor:
    """By how much lower bounds are missed: `v = Σ_k max(0, b_k - r_k)`.

    Args:
        rewards: `[B, G, K]`, on comparable scales (normalized).
        bounds: b `[B, K]` on the same scales; NaN where there is none.

    Returns:
        `[B, G]`, 0 where every bound is kept; NaN where a bounded reward is NaN.
    """
    asked = bounds.unsqueeze(-2)  # [B, 1, K]
    missed = (asked - rewards).clamp_min(0.0)
    # A reward without a bound takes no part, even where it is NaN.
    return torch.where(asked.isnan(), torch.zeros_like(missed), missed).sum(dim=-1)


def feasible_first(utilities: Tensor, missed: Tensor) -> Tensor:
    """Utilities that rank completions by their bounds first (Deb 2000, Eq. 5, maximizing).

    `u = s` where every bound is kept, otherwise `u = s_min - v`, with s_min the least utility of
    the prompt's completions that keep theirs, or 0 where none does. So one that keeps its bounds
    beats one that does not, of two that do the better wins, and of two that do not the nearer: no
    penalty has to be tuned. Without bounds the utilities are unchanged.

    Args:
        utilities: s `[..., G]`.
        missed: v `[..., G]`, broadcast against the utilities; 0 where all bounds are kept.

    Returns:
        u `[..., G]`, NaN where the utility or the violation is.
    """
    missed = missed.expand_as(utilities)
    kept = missed <= 0
    least = utilities.masked_fill(~kept | utilities.isnan(), torch.inf).amin(-1, keepdim=True)
    least = torch.where(least.isfinite(), least, torch.zeros_like(least))
    behind = torch.where(utilities.isnan(), utilities, least - missed)
    return torch.where(kept, utilities, behind)
