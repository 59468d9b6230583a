"""What makes decoding faster on a CPU, where a step costs mostly the reading of weights and cache.

Both are context managers for the time of a rollout; they change no result beyond float rounding
and do nothing where they do not apply.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    product itself. Only plain `nn.Linear` modules whose forward nobody replaced are concerned.

    Args:
        model: The policy, its weights fixed while inside.
        steps: How many decoding steps to expect; few do not pay for the packing.
    """
    modules = []
    if steps >= _MIN_STEPS and _has_packing() and not torch.is_autocast_enabled("cpu"):
        modules = [m for m in model.modules() if type(m) is nn.Linear and _is_packable(m)]
    if sum(m.weight.nbytes for m in modules) > _MAX_BYTES:
        modules = []
    try:
        for module in modules:
            module.__dict__["forward"] = _packed_forward(module)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


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


def _packed_forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = module.weight.detach(), module.bias
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(inputs: Tensor) -> Tensor:
        if inputs.dtype != weight.dtype or inputs.shape[:-1].numel() > _MAX_ROWS:
            return F.linear(inputs, module.weight, bias)
        product = torch.ops.mkldnn._linear_pointwise
        return product(inputs, packed, bias, "none", [], "")  # type: ignore[no-any-return]

    return forward


def _is_packable(module: nn.Linear) -> bool:
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
