"""Pairing: utilities → chosen / rejected. Knows nothing of text or models.

Shapes: B prompts, G completions of each (2 by default), P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Pairing",
    "matched_log_importance",
    "pair_completions",
    "preference_probabilities",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Which completions of each prompt make its pair, which prompts teach nothing, and why."""

    chosen: Tensor  # [B] int64: index of the best completion
    rejected: Tensor  # [B] int64: index of the worst
    active: Tensor  # [B] bool: trains
    ties: Tensor  # [B] bool: equal utilities
    duplicates: Tensor  # [B] bool: both completions are the same tokens
    undefined: Tensor  # [B] bool: fewer than two utilities are finite

    def order(self) -> Tensor:
        """Completion indices `[B, 2]`, chosen first."""
        return torch.stack([self.chosen, self.rejected], dim=-1)


def pair_completions(
    utilities: Tensor, *, identities: Tensor | None = None, tolerance: float = 0.0
) -> Pairing:
    """Pairs the best completion with the worst; a pair without a clear winner is inactive.

    Training a tie would teach an arbitrary order: with two identical completions the DPO
    gradient is exactly zero but the pair still weighs in the average, and with equal utilities
    of different texts it is noise. Completions whose utility is not finite are no candidates.

    Args:
        utilities: `[B, G]`, G at least 2.
        identities: `[B, G]` int64; completions of a prompt with the same tokens have the same
            number. Without it all are taken for different.
        tolerance: Utilities at most this far apart tie, in utility units.

    Returns:
        The pairing. The reasons are exclusive, counted in the order duplicate, undefined, tie.
    """
    defined = utilities.isfinite()  # [B, G]
    best = utilities.masked_fill(~defined, -torch.inf)
    worst = utilities.masked_fill(~defined, torch.inf)
    chosen = best.argmax(dim=-1)  # [B]; the first among equals
    # Among equals the last, so that two completions of one utility are still two.
    last = utilities.shape[1] - 1
    rejected = last - worst.flip(-1).argmin(dim=-1)
    if identities is None:
        duplicates = torch.zeros_like(chosen, dtype=torch.bool)
    else:
        duplicates = (identities == identities[:, :1]).all(dim=-1)
    undefined = (defined.sum(dim=-1) < 2) & ~duplicates
    gaps = (best.amax(dim=-1) - worst.amin(dim=-1)).where(~undefined, torch.nan)
    ties = (gaps <= tolerance) & ~duplicates & ~undefined
    return Pairing(
        chosen=chosen,
        rejected=rejected,
        active=~(duplicates | undefined | ties),
        ties=ties,
        duplicates=duplicates,
        undefined=undefined,
    )


def preference_probabilities(gaps: Tensor, temperature: float = 0.0) -> Tensor:
    """How sure it is that the first of two completions is better, by what it has more of.

    A Bradley-Terry judge, `p = σ(gap / T)`; as T goes to 0, whoever has more wins. Trained on such
    labels, DPO's margin βh is drawn to `gap / T` and the policy to `π_ref exp(u_w / (βT))`, which
    moves with the weights by degrees; hard labels have the same winner at weights of 0.6 and 1, and
    pull on for ever. As reward-aware preference optimization with a backward divergence, η = 1 / T
    (Nemotron-4 340B report, arXiv 2406.11704, section 3.3.2); see also arXiv 2405.19316.

    Args:
        gaps: Utility or reward of the first less that of the second, any shape; NaN is no opinion.
        temperature: T, in units of the gaps, at least 0.

    Returns:
        Probabilities of the same shape, 0 where there is no opinion. Hard labels leave ties
        without a winner, soft ones give both sides half.
    """
    if temperature == 0.0:
        return (gaps > 0).to(gaps.dtype)
    return torch.sigmoid(gaps / temperature).nan_to_num(0.0)


def matched_log_importance(
    logps: Tensor,  # [P, 2]
    lengths: Tensor,  # [P, 2]
    *,
    prompts: Tensor,  # [P]
    candidates: Tensor,  # [P, 2]
    relabeled: Tensor,  # [P, 2]
) -> Tensor:
    """Log-importance of relabeled completions that a pair under their own weights has, too.

    The log of the geometric mean, over tokens, of `π(token | new weights) / π(token | own)`. The
    importance of a whole completion is a product over its tokens and says little of any length; its
    geometric mean is comparable between completions. (GSPO, Zheng et al. 2025, Eq. 7, on weights
    instead of policies.)

    Args:
        logps: `[P, 2]` of the policy in nats, summed over completion tokens.
        lengths: `[P, 2]` completion tokens; at least 1 each.
        prompts: `[P]` int64: pairs of one prompt have the same number.
        candidates: `[P, 2]` int64: which of the prompt's completions.
        relabeled: `[P, 2]` bool: completions that were sampled under other weights.

    Returns:
        One value per such completion, possibly none, in nats per token.
    """
    logps, lengths = logps.flatten(), lengths.flatten()  # [2P]
    candidates, relabeled = candidates.flatten(), relabeled.flatten()
    prompts = prompts.repeat_interleave(2)
    same = (prompts[:, None] == prompts) & (candidates[:, None] == candidates)
    new, own = (same & relabeled[:, None] & ~relabeled).nonzero(as_tuple=True)
    return (logps[new] - logps[own]) / lengths[new]
