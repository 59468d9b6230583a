"""Settings that are no more, each with why it went and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["REMOVED"]

REMOVED: Mapping[str, str] = {
    "signed_objectives": (
        "signed_objectives is no more: no language model was ever trained with negative weights. "
        "To ask for less of an objective, add one that pulls the other way, as brevity does of "
        "detail."
    ),
}
"""By name of the setting, which is also that of its flag and of its key in a config file."""
