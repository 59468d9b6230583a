"""Limits: a number within its range, or words that say which range that is; imports no torch."""

from __future__ import annotations

import math

from moodpo.errors import ConfigError

__all__ = ["check_range"]


def check_range(name: str, value: float | None, low: float, high: float | None = None) -> None:
    """Refuses a number out of its range.

    Args:
        name: Of the setting.
        value: None is not looked at.
        low: The smallest that works.
        high: The largest; None is any finite number.

    Raises:
        ConfigError: Naming the setting, its range and what was given. NaN and infinities are in no
            range.
    """
    if value is None:
        return
    if not low <= value <= (math.inf if high is None else high) or math.isinf(value):
        upper = "" if high is None else f" and at most {high:.10g}"
        upper += " and finite" if high is None and value == math.inf else ""
        raise ConfigError(f"{name} must be at least {low:g}{upper}; got {value}.")
