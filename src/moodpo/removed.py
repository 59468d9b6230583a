"""Settings that earlier versions had: what to use instead of each, said for one release.

What proved useless is gone; the measurements are in `benchmarks/LOG.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moodpo.errors import ConfigError

__all__ = ["REMOVED", "refuse_removed"]

REMOVED: Mapping[str, str] = {
    "pairing": "The weighted utility decides a pair; votes per objective steered no better. "
    "Leave it out.",
    "warmup_steps_sft": "Imitating winners first steered no further. Start from an SFT model, or "
    "add their likelihood with rpo_alpha.",
    "contrastive_coefficient": "It added nothing to relabeling. Leave it out.",
}
"""Name of a setting, or NAME=VALUE where only that value went -> why, and what to use instead."""


def refuse_removed(names: Iterable[str]) -> None:
    """Refuses the first setting that this version no longer has.

    Args:
        names: Settings as they were given, without dashes; or NAME=VALUE.

    Raises:
        ConfigError: Naming it, why it went, and what to use instead.
    """
    for name in names:
        if name in REMOVED:
            raise ConfigError(f"{name} is no longer a setting: {REMOVED[name]}")
