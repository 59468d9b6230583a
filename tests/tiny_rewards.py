"""Rewards that tell the gibberish of random models apart, importable as `tiny_rewards:NAME`."""

from __future__ import annotations

__all__ = ["letters", "variety"]


def letters(completions: list[str], **_: object) -> list[float]:
    """Share of ASCII letters."""
    return [sum(c.isascii() and c.isalpha() for c in t) / max(len(t), 1) for t in completions]


def variety(completions: list[str], **_: object) -> list[float]:
    """Distinct characters."""
    return [float(len(set(text))) for text in completions]
