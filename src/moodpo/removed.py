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
    "lower_bounds": (
        "lower_bounds is no more: in the laboratory a policy kept a bound that its weights alone "
        "would not keep in less than half of its answers. Raise the objective's weight, and see in "
        "the report of moodpo evaluate from which weight on its answers reach what you need."
    ),
    "bound_probability": (
        "bound_probability is no more: it went with lower_bounds, which were seldom kept. Raise an "
        "objective's weight in place of bounding it."
    ),
}
"""By name of the setting, which is also that of its flag and of its key in a config file."""
