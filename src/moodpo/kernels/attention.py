"""Attention under a mask, in low precision on a CPU: forward and backward as plain matrix products.

torch's kernel for attention under a mask has a slow backward pass there (bfloat16, 24 rows of 150
tokens: 64 ms against 20 ms here). Nothing of size S × S outlives the call: the softmax is computed
again in the backward pass. Registered with transformers as an attention implementation that takes
this way where it pays, and torch's everywhere else.
Shapes: N sequences, H heads, G of them per key-value head, S positions, d units of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["NAME", "drop_pair_attention", "masked_attention", "use_pair_attention"]

NAME = "moodpo_sdpa"


def use_pair_attention(model: nn.Module) -> bool:
    """Lets a model that attends by torch's kernel take the plain products where they are faster.

    Args:
        model: The policy, possibly wrapped by PEFT.

    Returns:
        Whether anything was changed: nothing is away from CPUs, for models that chose another
        implementation, and for those whose attention cannot be set.
    """
    base = _base_of(model)
    if base is None or base.device.type != "cpu":
        return False
    if base.config._attn_implementation not in ("sdpa", NAME):
        return False
    AttentionInterface.register(NAME, _attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base.set_attn_implementation(NAME)
    return bool(base.config._attn_implementation == NAME)


def drop_pair_attention(model: nn.Module) -> None:
    """Gives a model that took it torch's kernel again."""
    base = _base_of(model)
    if base is not None and base.config._attn_implementation == NAME:
        base.set_attn_implementation("sdpa")


def _base_of(model: nn.Module) -> Any:
    base: Any = model
    base = base.get_base_model() if hasattr(base, "get_base_model") else base  # within PEFT
    return base if isinstance(base, PreTrainedModel) else None


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """`softmax(scaling · query keyᵀ + mask) value`, with grouped key-value heads.

    Args:
        query: `[N, H, S, d]`.
        key: `[N, H / G, S, d]`.
        value: `[N, H / G, S, v]`; v is d but for latent attention (DeepSeek).
        mask: Added to the scores, `[N or 1, 1, S, S]`; no row may be impossible throughout.
        scaling: Usually `d ** -0.5`.

    Returns:
        `[N, H, S, v]`.
    """
    output: Tensor = _MaskedAttention.apply(query, key, value, mask, scaling)  # type: ignore[no-untyped-call]
    return output


class _MaskedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
    ) -> Tensor:
        grouped = _group(query, key.shape[1])  # [N, H / G, G * S, d]
        output = _probabilities(grouped, key, mask, scaling) @ value
        ctx.save_for_backward(grouped, key, value, mask, output)
        ctx.scaling, ctx.shape = scaling, query.shape
        return output.view(*query.shape[:3], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output = ctx.saved_tensors
        grad = _group(grad, key.shape[1])  # [N, H / G, G * S, d]
        probabilities = _probabilities(query, key, mask, ctx.scaling)  # [N, H / G, G * S, S]
        grad_value = probabilities.mT @ grad
        # Through the softmax: p * (dp - sum(p * dp)), where the sum is that of grad * output
        # (Dao et al. 2022, Eq. 4).
        dot = (grad * output).sum(dim=-1, keepdim=True)
        grad_scores = (grad @ value.mT).sub_(dot).mul_(probabilities)
        grad_query = (grad_scores @ key).mul_(ctx.scaling).view(ctx.shape)
        grad_key = (grad_scores.mT @ query).mul_(ctx.scaling)
        return grad_query, grad_key, grad_value, None, None


def _probabilities(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """The softmax `[N, H / G, G * S, S]` in the type of `query`, made in float32."""
    scores = query @ key.mT  # [N, H / G, G * S, S]
    batch, heads, rows, columns = scores.shape
    by_head = scores.view(batch, heads, rows // columns, columns, columns).float()
    by_head = by_head.mul_(scaling).add_(mask[:, :, None])
    return by_head.softmax(dim=-1).to(query.dtype).view(scores.shape)


def _group(states: Tensor, key_heads: int) -> Tensor:
    batch, _, _, width = states.shape
    return states.reshape(batch, key_heads, -1, width)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers: `[N, S, H, d]` out."""
    if attention_mask is not None and _pays(query, key, attention_mask, dropout, kwargs):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        attended = masked_attention(query, key, value, attention_mask, scale)
        return attended.transpose(1, 2).contiguous(), None
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return output


def _pays(query: Tensor, key: Tensor, mask: Tensor, dropout: float, kwargs: Any) -> bool:
    length = query.shape[2]
    return (
        query.device.type == "cpu"
        and query.dtype != torch.float32
        and query.requires_grad
        and torch.is_grad_enabled()
        and mask.is_floating_point()
        and mask.shape[1:] == (1, length, length)
        and key.shape[2] == length
        and dropout == 0
        and all(kwargs.get(name) is None for name in ("position_bias", "softcap", "s_aux"))
    )
