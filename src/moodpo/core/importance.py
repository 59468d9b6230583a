"""Importance of relabeled completions: how far off-policy a pair is under other weights.

Knows nothing of text or models. Shapes: P pairs, 2 completions of each.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["matched_log_importance"]


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
