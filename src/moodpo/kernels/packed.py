"""What makes decoding faster on a CPU, where a step costs mostly the reading of weights and cache.

Both are context managers for the time of a rollout; they change no result beyond float rounding
and do nothing where they do not apply.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.kernels.lora import LoraAdapter, drops, plain_adapter

__all__ = ["grouped_attention", "packed_linears"]

# Packing costs about as much as 10 decoding steps and as much memory as the weights. On steps of
# up to that many rows it saves a fifth (float32) to a third (bfloat16) of the matrix products.
_MIN_STEPS = 24
_MAX_ROWS = 256
_MAX_BYTES = 4 * 2**30

# Asks transformers to hand grouped key-value heads to torch as they are even under a mask.
_GROUPED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"


@contextmanager
def packed_linears(model: nn.Module, *, steps: int) -> Iterator[None]:
    """Lets linear layers multiply few rows by weights laid out for oneDNN in advance.

    Plain `linear` reorders the weights on every call, which for few rows takes as long as the
    product itself. Only plain `nn.Linear` modules whose forward nobody replaced are concerned, and
    LoRA layers around one: the adapter's first matrix is packed below the layer's own, so that
    one product gives both (a fifth less time for a small model).

    Args:
        model: The policy, its weights fixed while inside.
        steps: How many decoding steps to expect; few do not pay for the packing.
    """
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    if steps >= _MIN_STEPS and _has_packing() and not torch.is_autocast_enabled("cpu"):
        adapted = {m: a for m in model.modules() if (a := _packable_adapter(m)) is not None}
        inside = {m for layer in adapted for m in layer.modules() if m is not layer}
        plain = [m for m in model.modules() if m not in inside and _is_packable(m)]
        bases: list[Any] = [*(m.base_layer for m in adapted), *plain]
        if sum(base.weight.nbytes for base in bases) <= _MAX_BYTES:
            forwards |= {m: _packed_adapter(m, adapter) for m, adapter in adapted.items()}
            forwards |= {m: _packed_forward(m) for m in plain}
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, replaced in before.items():
            module.__dict__.pop("forward")
            if replaced is not None:
                module.__dict__["forward"] = replaced


@contextmanager
def grouped_attention(model: nn.Module) -> Iterator[None]:
    """Lets attention of a low-precision model on a CPU read each key-value head once, masked too.

    transformers avoids this under a mask, because on a GPU it would fall back to a slow kernel;
    on a CPU it is the fast one (a quarter less time in bfloat16, none gained in float32).
    """
    parameter = next(model.parameters())
    if parameter.device.type != "cpu" or parameter.dtype == torch.float32:
        yield
        return
    before = os.environ.get(_GROUPED_HEADS)
    os.environ[_GROUPED_HEADS] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_GROUPED_HEADS, None)
        else:
            os.environ[_GROUPED_HEADS] = before


def _packed_forward(module: Any) -> Callable[[Tensor], Tensor]:
    product = _packed_product(module.weight.detach(), module.bias)
    return _for_few_rows(product, module.weight.dtype, otherwise=module.forward)


def _packed_adapter(layer: Any, adapter: LoraAdapter) -> Callable[[Tensor], Tensor]:
    """One product with `[W; A]`, then the small one with B."""
    weight, bias = layer.base_layer.weight.detach(), layer.base_layer.bias
    width, up = len(weight), adapter.b.detach().to(weight.dtype).T
    if bias is not None:
        bias = torch.cat([bias, bias.new_zeros(len(adapter.a))])
    product = _packed_product(torch.cat([weight, adapter.a.detach().to(weight.dtype)]), bias)

    def adapted(inputs: Tensor) -> Tensor:
        both = product(inputs).flatten(0, -2)  # [M, out + r]
        output = torch.addmm(both[:, :width], both[:, width:], up, alpha=adapter.scaling)
        return output.view(*inputs.shape[:-1], width)

    return _for_few_rows(adapted, weight.dtype, otherwise=layer.forward)


def _for_few_rows(
    product: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
    *,
    otherwise: Callable[[Tensor], Tensor],
) -> Callable[[Tensor], Tensor]:
    """A forward that takes the packed product where it is the faster one."""

    def forward(inputs: Tensor) -> Tensor:
        fits = inputs.dtype == dtype and inputs.shape[:-1].numel() <= _MAX_ROWS
        return product(inputs) if fits else otherwise(inputs)

    return forward


def _packed_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda inputs: product(inputs, packed, bias, "none", [], "")


def _packable_adapter(module: nn.Module) -> LoraAdapter | None:
    adapter = plain_adapter(module)
    if adapter is None or drops(module) or not _is_packable(module.base_layer):
        return None
    return adapter


def _is_packable(module: Any) -> bool:
    if type(module) is not nn.Linear:
        return False
    weight = module.weight
    supported = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    # A distributed or quantized tensor hides behind a parameter's data; a replaced forward
    # (accelerate's hooks) lives in the instance.
    plain = type(weight.data) is Tensor and "forward" not in module.__dict__
    return plain and supported and weight.device.type == "cpu"


def _has_packing() -> bool:
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in names)
