"""What `models.fast` stands for where `moodpo.kernels` is missing: torch's and peft's own ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OWN_ATTENTION = "sdpa"


def chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    with_entropies: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """As `kernels.vocabulary.chunked_logps`, with all logits `[M, V]` at once."""
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if bias is None else bias.to(hidden.dtype)
        logps = F.linear(hidden, weight.to(hidden.dtype), bias).float().log_softmax(dim=-1)
    entropies = -(logps.exp() * logps).sum(dim=-1).detach() if with_entropies else None
    return logps.gather(-1, targets[:, None]).squeeze(-1), entropies


def use_pair_attention(model: nn.Module) -> bool:
    """Leaves a model its attention."""
    return False


def drop_pair_attention(model: nn.Module) -> None:
    """Nothing: no model took another attention."""


def fuse_lora(model: nn.Module) -> int:
    """Leaves every layer peft's own forward."""
    return 0


def runs_fused(layer: Any) -> bool:
    """No layer does."""
    return False


@contextmanager
def grouped_attention(model: nn.Module) -> Iterator[None]:
    """Within it, nothing is different."""
    yield


@contextmanager
def packed_linears(model: nn.Module, *, steps: int) -> Iterator[None]:
    """Within it, nothing is different."""
    yield
