"""Which pairs share a forward pass: pure functions of their lengths.

Shapes: P pairs, their lengths in tokens (prompt + both completions), as `collate_pairs` packs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

__all__ = ["by_token_budget", "spread_over_passes"]


def by_token_budget(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Groups pairs that are alike in length, as few groups as a budget of tokens allows.

    Args:
        lengths: P lengths.
        budget: Largest padded size of a group, in tokens; a longer pair is a group by itself.

    Yields:
        Indices of pairs, from the shortest pairs to the longest.
    """
    group: list[int] = []
    for index in _by_length(lengths):
        if group and lengths[index] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def spread_over_passes(
    lengths: Sequence[int],
    num_passes: int,
    *,
    groups: Sequence[int] | None = None,
    budget: int | None = None,
) -> list[list[int]]:
    """Spreads pairs over a given number of passes, alike in length.

    The last passes are filled first: gradients are synchronized in the last one, so that is the
    one that must not be empty if there is any pair.

    Args:
        lengths: P lengths.
        num_passes: How many passes there will be, at least 1.
        groups: P numbers; pairs with the same one stay in the same pass. By default all differ.
        budget: With one, as few passes are used as keep the padded size of each within so many
            tokens; the others stay empty, and cost nothing.

    Returns:
        `num_passes` lists of indices.
    """
    units = _units(lengths, range(len(lengths)) if groups is None else groups)
    used = num_passes
    if budget is not None:
        fits = (n for n in range(1, num_passes) if _largest(lengths, units, n) <= budget)
        used = next(fits, num_passes)
    return [[] for _ in range(num_passes - used)] + _split(units, used)


def _by_length(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def _units(lengths: Sequence[int], groups: Sequence[int]) -> list[list[int]]:
    """Indices by group, from the group of the shortest longest pair on."""
    members: dict[int, list[int]] = {}
    for index in _by_length(lengths):
        members.setdefault(groups[index], []).append(index)
    return sorted(members.values(), key=lambda unit: lengths[unit[-1]])


def _split(units: list[list[int]], parts: int) -> list[list[int]]:
    bounds = [len(units) * i // parts for i in range(parts + 1)]
    return [[i for unit in units[a:b] for i in unit] for a, b in itertools.pairwise(bounds)]


def _largest(lengths: Sequence[int], units: list[list[int]], parts: int) -> int:
    """Padded size in tokens of the largest of so many parts."""
    return max(len(part) * lengths[part[-1]] if part else 0 for part in _split(units, parts))
