"""Choices: the closed sets of names that settings, the method and `moodpo.json` share."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

__all__ = [
    "LOSS_TYPES",
    "NORMALIZATIONS",
    "RELABELINGS",
    "SCALARIZATIONS",
    "LossType",
    "NormalizerKind",
    "Scalarization",
]

LossType: TypeAlias = Literal["sigmoid", "ipo", "hinge", "robust"]
Scalarization: TypeAlias = Literal["linear", "chebyshev"]
NormalizerKind: TypeAlias = Literal["none", "running", "calibrate"]

LOSS_TYPES: tuple[str, ...] = get_args(LossType)
SCALARIZATIONS: tuple[str, ...] = get_args(Scalarization)
NORMALIZATIONS: tuple[str, ...] = get_args(NormalizerKind)
RELABELINGS = ("none", "antithetic")
