"""Rewards that tell the gibberish of random models apart, importable as `tiny_rewards:NAME`."""

from __future__ import annotations

from typing import Any

__all__ = ["letters", "matches", "spoken", "tokens", "variety"]


def letters(completions: list[str], **_: object) -> list[float]:
    """Share of ASCII letters."""
    return [sum(c.isascii() and c.isalpha() for c in t) / max(len(t), 1) for t in completions]


def variety(completions: list[str], **_: object) -> list[float]:
    """Distinct characters."""
    return [float(len(set(text))) for text in completions]


def spoken(prompts: list[Any], completions: list[Any], **_: object) -> list[float]:
    """Characters said, as TRL's functions read texts and conversations."""
    texts = [
        c if isinstance(p, str) else c[0]["content"]
        for p, c in zip(prompts, completions, strict=True)
    ]
    return [float(len(text)) for text in texts]


def matches(completions: list[str], solution: list[str]) -> list[float]:
    """Needs a column."""
    return [float(c == s) for c, s in zip(completions, solution, strict=True)]


def tokens(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Needs the policy's own tokens, as TRL passes them."""
    return [float(len(ids)) for ids in completion_ids]
