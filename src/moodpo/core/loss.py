"""Losses of the DPO family on chosen / rejected log-probabilities.

Knows nothing of text or models. Shapes: B pairs; column 0 is chosen, column 1 rejected. Every loss
is unreduced: the caller owns masking and averaging. The field's notation: h is the margin of
log-ratios, `h = log π(y_c)/π_ref(y_c) - log π(y_r)/π_ref(y_r)`.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from moodpo.choices import LOSS_TYPES, LossType
from moodpo.errors import ConfigError

__all__ = [
    "dpo_loss",
    "hinge_loss",
    "imitation_loss",
    "ipo_loss",
    "preference_loss",
    "robust_loss",
    "voted_loss",
]


def dpo_loss(
    policy_logps: Tensor,  # [B, 2] chosen, rejected; summed over completion tokens
    ref_logps: Tensor,  # [B, 2]
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:  # [B]
    """Sigmoid DPO loss (Rafailov et al. 2023, Eq. 7), conservative when labels are smoothed.

    `-(1 - ε) log σ(βh) - ε log σ(-βh)`; ε > 0 is conservative DPO (Mitchell 2023), which assumes
    that a fraction ε of the preferences is flipped.

    Args:
        policy_logps: `[B, 2]` in nats, chosen first, summed over completion tokens.
        ref_logps: `[B, 2]` of the reference.
        beta: Strength of the pull toward the reference, per nat.
        label_smoothing: ε in [0, 0.5).

    Returns:
        Losses `[B]` in nats.
    """
    h = _margins(policy_logps, ref_logps)  # [B]
    likely = -F.logsigmoid(beta * h)
    if label_smoothing == 0.0:
        return likely
    return (1 - label_smoothing) * likely - label_smoothing * F.logsigmoid(-beta * h)


def robust_loss(
    policy_logps: Tensor, ref_logps: Tensor, *, beta: float, label_smoothing: float
) -> Tensor:
    """Robust DPO (Chowdhury et al. 2024, Eq. 9): unbiased under labels flipped with rate ε.

    `(-(1 - ε) log σ(βh) + ε log σ(-βh)) / (1 - 2ε)`.

    Args:
        policy_logps: `[B, 2]` in nats, chosen first.
        ref_logps: `[B, 2]` of the reference.
        beta: Strength of the pull toward the reference, per nat.
        label_smoothing: ε in [0, 0.5), the known rate of flips.

    Returns:
        Losses `[B]`.
    """
    h = _margins(policy_logps, ref_logps)  # [B]
    kept, flipped = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return (label_smoothing * flipped - (1 - label_smoothing) * kept) / (1 - 2 * label_smoothing)


def ipo_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    lengths: Tensor,  # [B, 2] completion tokens
    *,
    beta: float,
) -> Tensor:  # [B]
    """IPO (Azar et al. 2023, Eq. 17) on length-normalized log-probabilities: `(h - 1/(2β))²`.

    The authors normalize by length (see trl's DPOTrainer, which cites them): a sum over tokens
    would chase a margin of 1/(2β) however long the text is.

    Args:
        policy_logps: `[B, 2]` in nats, chosen first, summed over completion tokens.
        ref_logps: `[B, 2]` of the reference.
        lengths: `[B, 2]` completion tokens; at least 1 each.
        beta: The τ of the paper, per nat.

    Returns:
        Losses `[B]`.
    """
    h = _margins(policy_logps / lengths, ref_logps / lengths)  # [B]
    return (h - 1 / (2 * beta)) ** 2


def hinge_loss(policy_logps: Tensor, ref_logps: Tensor, *, beta: float) -> Tensor:
    """Hinge loss (SLiC, Zhao et al. 2023, on DPO's margin): `max(0, 1 - βh)`.

    Args:
        policy_logps: `[B, 2]` in nats, chosen first.
        ref_logps: `[B, 2]` of the reference.
        beta: Inverse of the margin wanted, per nat.

    Returns:
        Losses `[B]`.
    """
    return F.relu(1 - beta * _margins(policy_logps, ref_logps))


def preference_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    lengths: Tensor,
    *,
    loss_type: LossType,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of the chosen type.

    Args:
        policy_logps: `[B, 2]` in nats, chosen first, summed over completion tokens.
        ref_logps: `[B, 2]` of the reference.
        lengths: `[B, 2]` completion tokens (`ipo` divides by them).
        loss_type: `sigmoid`, `ipo`, `hinge` or `robust`.
        beta: See the loss.
        label_smoothing: ε, for `sigmoid` (conservative DPO) and `robust`.

    Returns:
        Losses `[B]`.

    Raises:
        ConfigError: If the type is unknown.
    """
    if loss_type == "sigmoid":
        return dpo_loss(policy_logps, ref_logps, beta=beta, label_smoothing=label_smoothing)
    if loss_type == "robust":
        return robust_loss(policy_logps, ref_logps, beta=beta, label_smoothing=label_smoothing)
    if loss_type == "ipo":
        return ipo_loss(policy_logps, ref_logps, lengths, beta=beta)
    if loss_type == "hinge":
        return hinge_loss(policy_logps, ref_logps, beta=beta)
    raise ConfigError(f"Unknown loss_type {loss_type!r}. Choose one of {LOSS_TYPES}.")


def voted_loss(
    policy_logps: Tensor, ref_logps: Tensor, lengths: Tensor, votes: Tensor, **settings: Any
) -> Tensor:
    """A preference loss under a divided vote: `p L(y_c ≻ y_r) + q L(y_r ≻ y_c)`.

    With votes (1, 0) it is the loss itself.

    Args:
        policy_logps: `[B, 2]` in nats, chosen first.
        ref_logps: `[B, 2]` of the reference.
        lengths: `[B, 2]` completion tokens.
        votes: `[B, 2]`, p and q, at least 0.
        **settings: Of `preference_loss`.

    Returns:
        Losses `[B]`.
    """
    losses = votes[:, 0] * preference_loss(policy_logps, ref_logps, lengths, **settings)
    if not bool(votes[:, 1].any()):
        return losses
    flipped = (values.flip(-1) for values in (policy_logps, ref_logps, lengths))
    return losses + votes[:, 1] * preference_loss(*flipped, **settings)


def imitation_loss(policy_logps: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-probability of the chosen completion's tokens: supervised fine-tuning.

    Args:
        policy_logps: `[B, 2]` in nats, chosen first, summed over completion tokens.
        lengths: `[B, 2]` completion tokens; at least 1 each.

    Returns:
        Losses `[B]` in nats per token.
    """
    return -policy_logps[:, 0] / lengths[:, 0]


def _margins(policy_logps: Tensor, ref_logps: Tensor) -> Tensor:
    logratios = policy_logps - ref_logps  # [B, 2]
    return logratios[:, 0] - logratios[:, 1]  # [B]
