"""Probe: what a model says of a few fixed tokens, to try what would otherwise be assumed.

Two passes that compute the same agree up to rounding; whether they do is measured, not looked up.
Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.core.precision import compute_dtype
from moodpo.models.modes import evaluating

__all__ = ["gap", "mixing_types", "probe_ids", "probe_logps", "tolerance"]

TOKENS = 12
# Nats per token between two passes that compute the same in another order.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.03}
_COARSE = 0.1  # of bfloat16 and of quantized weights


@torch.no_grad()
def probe_logps(model: nn.Module) -> Tensor:
    """Log-probabilities `[T - 1]` of a few tokens in evaluation mode: one small forward pass.

    Args:
        model: A causal language model, possibly wrapped by PEFT; every module keeps its mode.
    """
    ids = probe_ids(model)
    with evaluating(model), mixing_types(model):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1]  # [T - 1, V]
    logps = logits.float().log_softmax(dim=-1)
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)


def mixing_types(model: nn.Module) -> AbstractContextManager[Any]:
    """Autocast for quantized models: they mix types that only it brings together."""
    device_type = next(model.parameters()).device.type
    if not getattr(model, "is_quantized", False) or torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, torch.bfloat16)


def gap(first: Tensor, second: Tensor) -> float:
    """Mean distance of two `probe_logps`, in nats per token."""
    return (first - second).abs().mean().item()


def tolerance(model: nn.Module) -> float:
    """The largest `gap` of two passes that compute the same, in the coarsest type used."""
    if getattr(model, "is_quantized", False):
        return _COARSE
    kinds = {(p.device.type, p.dtype) for p in model.parameters() if p.is_floating_point()}
    return max(_TOLERANCES.get(compute_dtype(*kind), _COARSE) for kind in kinds)


def probe_ids(model: nn.Module) -> Tensor:
    """Token ids `[1, T]` within the model's vocabulary."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(1, TOKENS + 1, device=next(model.parameters()).device)
    rows: int = embedding.weight.shape[0]
    return (7 * ids % rows)[None]
