"""LoRA layers whose two small products ride on the large one, forward and backward.

PEFT computes `base(x) + B(A(dropout(x))) * scaling` as separate operations, and under autocast
casts every activation to the adapter's fp32 and back. Here one autograd function saves the input
once, adds the low-rank products in place, and casts the small matrices instead of the activations.
Same mathematics; a layer that does something else (DoRA, several adapters, a quantized or merged
base) keeps PEFT's own forward. Shapes: M tokens, r rank.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.kernels.lora import drops, lora_linear, plain_adapter
from moodpo.kernels.precision import compute_dtype

__all__ = ["fuse_lora", "lora_layers", "runs_fused"]


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


def lora_layers(model: nn.Module) -> list[Any]:
    """The LoRA linear layers of a PEFT model; none of any other."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.lora.layer import Linear

    return [module for module in model.modules() if type(module) is Linear]


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
