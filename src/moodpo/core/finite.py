"""Finite: whether tensors hold a NaN or an infinity, in one reduction.

Knows nothing of models or optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["are_finite", "name_non_finite"]

_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite; waits for the device once.

    The largest magnitude tells: it overflows in no precision, as a sum of squares would.

    Args:
        tensors: Of any shapes and devices; integers, 8-bit floats and absent data are passed over.
    """
    checked = [
        t.detach() for t in tensors if t.dtype in _CHECKED and t.numel() and t.device.type != "meta"
    ]
    if not checked:
        return True
    return bool(torch.nn.utils.get_total_norm(checked, norm_type=torch.inf).isfinite())


def name_non_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity; cheap where there is none.

    Args:
        named: Such as `model.named_parameters()`.
    """
    tensors = list(named)
    if are_finite(tensor for _, tensor in tensors):
        return []
    return [name for name, tensor in tensors if not are_finite([tensor])]
