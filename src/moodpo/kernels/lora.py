"""LoRA layers whose two small products ride on the large one, forward and backward.

PEFT computes `base(x) + B(A(dropout(x))) * scaling` as separate operations, and under autocast
casts every activation to the adapter's fp32 and back. Here one autograd function saves the input
once, adds the low-rank products in place, and casts the small matrices instead of the activations.
Same mathematics; a layer that does something else (DoRA, several adapters, a quantized or merged
base) keeps PEFT's own forward. Shapes: M tokens, r rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodpo._upstream import lora_layers
from moodpo.core.precision import compute_dtype

__all__ = ["LoraAdapter", "drops", "fuse_lora", "lora_linear", "plain_adapter", "runs_fused"]


def fuse_lora(model: nn.Module) -> int:
    """Gives every plain LoRA linear layer of a PEFT model the fused forward.

    Args:
        model: A PEFT model; any other is left alone, and so are layers whose forward something
            else has replaced.

    Returns:
        How many layers have it. What a layer does at each call is still its own state's choice: a
        disabled or merged adapter is respected.
    """
    layers = [
        layer for layer in lora_layers(model) if "forward" not in layer.__dict__ or _is_fused(layer)
    ]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def runs_fused(layer: Any) -> bool:
    """Whether a LoRA layer, as it is now, takes the fused product when it is trained."""
    return _is_fused(layer) and plain_adapter(layer) is not None and not _does_more(layer)


def _is_fused(layer: Any) -> bool:
    return getattr(layer.__dict__.get("forward"), "__func__", None) is _forward


def _does_more(layer: Any) -> bool:
    """Whether calling one of a layer's linear modules is more than a product with its weight.

    Hooks (accelerate's, for modules that lie elsewhere), a replaced forward, quantized weights.
    """
    name = layer.active_adapters[0]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(
        "forward" in part.__dict__
        or type(part.weight.data) is not Tensor
        or any(getattr(part, kind) for kind in hooks)
        for part in (layer.base_layer, layer.lora_A[name], layer.lora_B[name])
    )


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a `peft.tuners.lora.layer.Linear`: fused where that is the same."""
    dtype, base = compute_dtype(x.device.type, x.dtype), self.base_layer
    adapter = plain_adapter(self)
    if args or kwargs or adapter is None or base.weight.dtype != dtype:
        return _peft_forward(self, x, *args, **kwargs)
    dropping = drops(self)
    if dropping and not torch.is_grad_enabled():  # rare: training mode without a gradient
        return _peft_forward(self, x)
    x = x.to(dtype)
    if torch.is_grad_enabled():
        if _does_more(self):
            return _peft_forward(self, x)
        dropped = self.lora_dropout[self.active_adapters[0]](x) if dropping else None
        return lora_linear(x, base.weight, base.bias, *adapter, dropped)
    output: Tensor = base(x)
    low = x.flatten(0, -2) @ adapter.a.to(dtype).T  # [M, r]
    flat = output.view(-1, output.shape[-1])
    flat.addmm_(low, adapter.b.to(dtype).T, alpha=adapter.scaling)
    return output


def _peft_forward(layer: Any, *args: Any, **kwargs: Any) -> Tensor:
    output: Tensor = type(layer).forward(layer, *args, **kwargs)
    return output


# --- the product ------------------------------------------------------------------------------


class LoraAdapter(NamedTuple):
    """What one adapter adds to a linear layer: `scaling · (x Aᵀ) Bᵀ`."""

    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scaling: float  # α / r


def plain_adapter(layer: Any) -> LoraAdapter | None:
    """The active adapter of a LoRA linear layer, if the layer does nothing but add its product.

    Args:
        layer: Any module; peft's `tuners.lora.layer.Linear` is the one that may be plain.

    Returns:
        None for every other module, and where adapters are disabled, merged, several, not linear
        (DoRA), biased, or sit on a base that is trained, quantized or not a plain `nn.Linear`.
        Dropout is the caller's concern.
    """
    base = getattr(layer, "base_layer", None)
    if type(base) is not nn.Linear or not hasattr(layer, "lora_A"):
        return None
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name = layer.active_adapters[0]
    if name not in layer.lora_A or name in getattr(layer, "lora_variant", {}):
        return None
    down, up = layer.lora_A[name], layer.lora_B[name]
    trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    if trained or layer.fan_in_fan_out or down.bias is not None or up.bias is not None:
        return None
    return LoraAdapter(down.weight, up.weight, layer.scaling[name])


def drops(layer: Any) -> bool:
    """Whether the active adapter of a LoRA layer drops inputs at random now."""
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    return isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    dropped: Tensor | None = None,
) -> Tensor:
    """`x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ` (Hu et al. 2021, Eq. 3).

    Args:
        x: `[..., in]`.
        weight: W `[out, in]`, frozen, in the dtype of `x`.
        bias: `[out]` or None, frozen.
        a: A `[r, in]`, in any precision; its gradient is in the same.
        b: B `[out, r]`, likewise.
        scaling: α / r.
        dropped: x after dropout, for the low-rank product alone; x itself by default.

    Returns:
        `[..., out]` in the dtype of `x`.
    """
    output: Tensor = _LoraLinear.apply(x, dropped, weight, bias, a, b, scaling)  # type: ignore[no-untyped-call]
    return output


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        flat = x.flatten(0, -2)  # [M, in]
        seen = flat if dropped is None else dropped.flatten(0, -2)  # by the low-rank product
        small_a, small_b = a.to(x.dtype), b.to(x.dtype)
        low = seen @ small_a.T  # [M, r]
        output = F.linear(flat, weight, bias).addmm_(low, small_b.T, alpha=scaling)  # [M, out]
        ctx.save_for_backward(seen, weight, low, small_a, small_b)
        ctx.drops = dropped is not None
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (a.dtype, b.dtype)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        seen, weight, low, small_a, small_b = ctx.saved_tensors
        grad = grad.flatten(0, -2)  # [M, out]
        grad_low = (grad @ small_b).mul_(ctx.scaling)  # [M, r]
        grad_x, grad_dropped = None, None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if ctx.drops:
                grad_dropped = (grad_low @ small_a).view(ctx.shape)
            else:
                grad_x.addmm_(grad_low, small_a)
            grad_x = grad_x.view(ctx.shape)
        grad_a = (grad_low.T @ seen).to(ctx.dtypes[0])
        grad_b = (grad.T @ low).mul_(ctx.scaling).to(ctx.dtypes[1])
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None
