"""Importance of relabeled completions: how far off-policy a pair is under other weights.

Knows nothing of text or models. Shapes: P pairs, 2 completions of each.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["log_importance", "matched_log_importance"]


def log_importance(new_logps: Tensor, own_logps: Tensor, lengths: Tensor) -> Tensor:
    """Log of the geometric mean, over tokens, of `π(token | new weights) / π(token | own)`.

    The importance of a whole completion is a product over its tokens and says little of any
    length; its geometric mean is comparable between completions. (GSPO, Zheng et al. 2025, Eq. 7,
    on weights instead of policies.)

    Args:
        new_logps: Any shape, in nats, summed over completion tokens: under the new weights.
        own_logps: The same shape: under the weights that the completion was sampled under.
        lengths: The same shape, completion tokens; at least 1 each.

    Returns:
        The same shape, in nats per token.
    """
    return (new_logps - own_logps) / lengths


def matched_log_importance(
    logps: Tensor,  # [P, 2]
    lengths: Tensor,  # [P, 2]
    *,
    prompts: Tensor,  # [P]
    candidates: Tensor,  # [P, 2]
    relabeled: Tensor,  # [P, 2]
) -> Tensor:
    """`log_importance` of relabeled completions that a pair under their own weights has, too.

    Args:
        logps: `[P, 2]` of the policy, in nats.
        lengths: `[P, 2]` completion tokens.
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
    return log_importance(logps[new], logps[own], lengths[new])
