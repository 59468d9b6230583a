"""How a model is set for rollouts, and put back: evaluation mode, no checkpointing, low precision.

Knows nothing of tokens. Everything here is a context manager that restores what it changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from moodpo.models.fast import grouped_attention, packed_linears

__all__ = ["cast_parameters", "evaluating", "rollout_dtype", "rollout_mode"]


@contextmanager
def rollout_mode(model: nn.Module, *, dtype: torch.dtype | None, steps: int) -> Iterator[None]:
    """Evaluation mode without gradients or checkpointing, in `dtype` if one is given.

    Gradients are off by `no_grad`: under `inference_mode` a model that caches tensors (rotary
    frequencies) would keep ones that autograd refuses later, and hooks that mark activations as
    requiring gradients would fail.

    Args:
        model: Any module; every submodule's own mode is restored.
        dtype: What to cast float32 parameters to, once; autocast is then off inside.
        steps: How many decoding steps to expect.
    """
    device_type = next(model.parameters()).device.type
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(model))
        if dtype is not None:
            stack.enter_context(cast_parameters(model, dtype))
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(grouped_attention(model))
        stack.enter_context(packed_linears(model, steps=steps))
        yield


def rollout_dtype(model: nn.Module, requested: torch.dtype | None) -> torch.dtype | None:
    """The type to cast float32 parameters to for a rollout, or None to leave the model alone.

    Inside a caller's bfloat16 autocast the answer is bfloat16: casting the weights once per
    rollout is much cheaper than casting them, and the whole cache of keys, at every token.

    Args:
        model: The policy.
        requested: The caller's explicit choice, which wins.
    """
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        return None
    if requested is None:
        device_type = next(model.parameters()).device.type
        if not torch.is_autocast_enabled(device_type):
            return None
        requested = torch.get_autocast_dtype(device_type)
        # float16 overflows without autocast's float32 islands.
        if requested != torch.bfloat16:
            return None
    casts = any(p.dtype == torch.float32 != requested for p in model.parameters())
    return requested if casts else None


@contextmanager
def cast_parameters(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Lets the modules see their float32 parameters in `dtype`, cast once, tied ones once.

    The parameters themselves are not touched (only the modules' references are), so optimizers
    and gradient hooks never notice.

    Args:
        model: Any module.
        dtype: A floating type.
    """
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    casts: dict[int, nn.Parameter] = {}
    try:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.dtype == torch.float32:
                    if id(parameter) not in casts:
                        casts[id(parameter)] = _cast(parameter, dtype)
                    module._parameters[name] = casts[id(parameter)]
                    replaced.append((module, name, parameter))
        yield
    finally:
        for module, name, parameter in replaced:
            module._parameters[name] = parameter


def _cast(parameter: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(dtype), requires_grad=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it, a model drops nothing and checkpoints nothing; every module is put back."""
    training = [module for module in model.modules() if module.training]
    # Through __dict__: wrappers (PEFT) forward unknown attributes to the model inside.
    checkpointing = [m for m in model.modules() if m.__dict__.get("gradient_checkpointing")]
    try:
        model.eval()
        for module in checkpointing:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for module in training:
            module.training = True
        for module in checkpointing:
            module.gradient_checkpointing = True  # type: ignore[assignment]
