"""Precision: the type that a product is computed in. Knows nothing of models."""

from __future__ import annotations

import torch

__all__ = ["compute_dtype"]


def compute_dtype(device_type: str, own: torch.dtype) -> torch.dtype:
    """The type of matrix products on a device now: autocast's inside an autocast.

    Args:
        device_type: As in `tensor.device.type`.
        own: The operands' type, which holds outside of an autocast.
    """
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return own
