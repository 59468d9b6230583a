"""Prefill: which prompts are read together, a pure function of their lengths in tokens."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["prefill_groups"]

# Prefill works on at most that many tokens at once (it bounds the activations), and a group of
# prompts is closed when padding would exceed that share of it and it is large enough to be
# efficient by itself.
_MAX_PREFILL_TOKENS = 8192
_MIN_PREFILL_TOKENS = 512
_MAX_PADDING_SHARE = 1 / 8


def prefill_groups(lengths: Sequence[int]) -> list[int]:
    """Cuts prompts, sorted from the longest to the shortest, into groups to prefill together.

    A group is closed when one more prompt would exceed the token limit, or when it would waste
    too much on padding and the group is large enough to be efficient as it is.

    Args:
        lengths: Tokens per prompt, descending.

    Returns:
        The sizes of consecutive groups; they sum to the number of prompts.
    """
    sizes: list[int] = []
    width = size = filled = 0
    for length in lengths:
        padded = width * (size + 1)
        wasteful = padded - filled - length > _MAX_PADDING_SHARE * padded
        if size and (
            padded > _MAX_PREFILL_TOKENS or (wasteful and width * size >= _MIN_PREFILL_TOKENS)
        ):
            sizes.append(size)
            size = filled = 0
        if size == 0:
            width = length
        size, filled = size + 1, filled + length
    return [*sizes, size] if size else sizes
