"""Scalarization: K rewards and K weights → one utility.

Knows nothing of text or models. Shapes: B prompts, 2 completions, K objectives. All objectives
maximize, and so does every utility here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moodpo.choices import SCALARIZATIONS, Scalarization
from moodpo.errors import ConfigError

__all__ = ["chebyshev", "linear", "scalarize"]


def linear(rewards: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum: `s = Σ_k w_k r_k` (MO-ODPO, Gupta et al. 2025).

    Reaches only the convex parts of a Pareto front; see `chebyshev` for concave ones. An
    objective of weight 0 takes no part, even where its reward is NaN.

    Args:
        rewards: `[..., K]`.
        weights: `[..., K]`, broadcast against the rewards.

    Returns:
        Utilities `[...]`, NaN where a reward of positive weight is NaN.
    """
    return _weighted(weights, rewards).sum(dim=-1)


def chebyshev(
    rewards: Tensor, weights: Tensor, *, ideal: Tensor | None = None, augmentation: float = 0.05
) -> Tensor:
    """Augmented weighted Chebyshev utility (Steuer and Choo 1983).

    `s = -( max_k w_k (z_k - r_k) + ρ Σ_k w_k (z_k - r_k) )` with the ideal point z. Its optima
    cover concave parts of a front too; the augmentation ρ keeps weakly dominated points from
    tying with the ones that dominate them.

    Args:
        rewards: `[..., K]`, on comparable scales (normalized).
        weights: `[..., K]`, broadcast against the rewards.
        ideal: z `[K]`, at or above the best of every objective; zero when None.
        augmentation: ρ, small and positive.

    Returns:
        Utilities `[...]`, NaN where a reward of positive weight is NaN.
    """
    regrets = -rewards if ideal is None else ideal - rewards
    regrets = _weighted(weights, regrets)  # [..., K]
    return -(regrets.amax(dim=-1) + augmentation * regrets.sum(dim=-1))


def scalarize(
    rewards: Tensor, weights: Tensor, kind: Scalarization, *, ideal: Tensor | None = None
) -> Tensor:
    """Utilities of two completions per prompt under the prompt's weights.

    Args:
        rewards: `[B, 2, K]` normalized rewards.
        weights: `[B, K]`.
        kind: `linear` or `chebyshev`.
        ideal: The ideal point `[K]` for `chebyshev`.

    Returns:
        Utilities `[B, 2]`.

    Raises:
        ConfigError: If `kind` is neither.
    """
    per_completion = weights.unsqueeze(-2)  # [B, 1, K]
    if kind == "linear":
        return linear(rewards, per_completion)
    if kind == "chebyshev":
        return chebyshev(rewards, per_completion, ideal=ideal)
    raise ConfigError(f"Unknown scalarization {kind!r}. Choose one of {SCALARIZATIONS}.")


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    # A plain product would turn 0 * NaN into NaN for an objective nobody asked about.
    return torch.where(weights == 0, torch.zeros_like(values), weights * values)
