"""LoRA layers whose two small products ride on the large one, forward and backward.

PEFT computes `base(x) + B(A(dropout(x))) * scaling` as separate operations, and under autocast
casts every activation to the adapter's fp32 and back. Here one autograd function saves the input
once, adds the low-rank products in place, and casts the small matrices instead of the activations.
Same mathematics; a layer that does something else (dropout, DoRA, several adapters, a quantized or
merged base) keeps PEFT's own forward. Shapes: M tokens, r rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["fuse_lora", "lora_linear"]


def fuse_lora(model: nn.Module) -> int:
    """Gives every plain LoRA linear layer of a PEFT model the fused forward.

    Args:
        model: A PEFT model; any other is left alone.

    Returns:
        How many layers were changed. What a layer does at each call is still its own state's
        choice: a disabled or merged adapter, or one with dropout in training, is respected.
    """
    if not hasattr(model, "peft_config"):
        return 0
    from peft.tuners.lora.layer import Linear

    layers = [module for module in model.modules() if type(module) is Linear]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """`x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ` (Hu et al. 2021, Eq. 3).

    Args:
        x: `[..., in]`.
        weight: W `[out, in]`, frozen, in the dtype of `x`.
        bias: `[out]` or None, frozen.
        a: A `[r, in]`, in any precision; its gradient is in the same.
        b: B `[out, r]`, likewise.
        scaling: α / r.

    Returns:
        `[..., out]` in the dtype of `x`.
    """
    output: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scaling)  # type: ignore[no-untyped-call]
    return output


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        flat = x.flatten(0, -2)  # [M, in]
        small_a, small_b = a.to(x.dtype), b.to(x.dtype)
        low = flat @ small_a.T  # [M, r]
        output = F.linear(flat, weight, bias).addmm_(low, small_b.T, alpha=scaling)  # [M, out]
        ctx.save_for_backward(flat, weight, low, small_a, small_b)
        ctx.scaling, ctx.shape, ctx.dtypes = scaling, x.shape, (a.dtype, b.dtype)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, low, small_a, small_b = ctx.saved_tensors
        grad = grad.flatten(0, -2)  # [M, out]
        grad_low = (grad @ small_b).mul_(ctx.scaling)  # [M, r]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, small_a).view(ctx.shape)
        grad_a = (grad_low.T @ flat).to(ctx.dtypes[0])
        grad_b = (grad.T @ low).mul_(ctx.scaling).to(ctx.dtypes[1])
        return grad_x, None, None, grad_a, grad_b, None


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a `peft.tuners.lora.layer.Linear`: fused where that is the same."""
    dtype = _compute_dtype(x)
    if args or kwargs or not _is_plain(self, dtype):
        output: Tensor = type(self).forward(self, x, *args, **kwargs)
        return output
    name, base = self.active_adapters[0], self.base_layer
    x, a, b = x.to(dtype), self.lora_A[name].weight, self.lora_B[name].weight
    if torch.is_grad_enabled():
        return lora_linear(x, base.weight, base.bias, a, b, self.scaling[name])
    output = base(x)  # through the layer: rollouts lend it a faster product
    low = x.flatten(0, -2) @ a.to(dtype).T  # [M, r]
    output.view(-1, output.shape[-1]).addmm_(low, b.to(dtype).T, alpha=self.scaling[name])
    return output


def _is_plain(layer: Any, dtype: torch.dtype) -> bool:
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return False
    name, base = layer.active_adapters[0], layer.base_layer
    if name not in layer.lora_A or name in getattr(layer, "lora_variant", {}):
        return False
    dropout = layer.lora_dropout[name]
    drops = isinstance(dropout, nn.Dropout) and dropout.p > 0 and dropout.training
    return (
        not drops
        and type(base) is nn.Linear
        and base.weight.dtype == dtype
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
        and not layer.fan_in_fan_out
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
