"""The key-value cache of a decoding batch: rows leave it, and new prompts join it.

A transformers `DynamicCache` concatenates keys and values anew for every layer and token; here
they live in buffers with room, so that a token costs one small copy. Everything else about the
cache (which layers there are, how attention reads them) stays with transformers: the model builds
its own cache at prefill, and only its plain attention layers are replaced. Caches with other
layers (sliding windows, linear attention) are kept as they are and cannot take in new rows.

Shapes: N rows in use out of R that fit, H key-value heads, S visible columns, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

__all__ = ["DecodingCache", "GrowingLayer", "RowMoves", "is_reorderable"]

# Columns added when a buffer is full; each growth copies the buffer once.
_GROWTH = 128


@dataclass(frozen=True, slots=True)
class RowMoves:
    """Which rows stay, and how they close the gaps: rows from the end move into the holes."""

    order: Tensor  # [M] the old place of each remaining row
    targets: Tensor  # [G] holes among the first M places
    sources: Tensor  # [G] the old places of the rows that fill them

    @classmethod
    def keeping(cls, alive: Tensor) -> RowMoves:
        """The moves that keep the rows marked in `alive` `[N]` bool."""
        remaining = int(alive.sum())
        targets = (~alive[:remaining]).nonzero().squeeze(1)
        sources = alive[remaining:].nonzero().squeeze(1) + remaining
        order = torch.arange(remaining, device=alive.device)
        order[targets] = sources
        return cls(order, targets, sources)


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one attention layer, in buffers `[R, H, columns, D]` with room to grow.

    The rows `0 .. N` and the columns `first .. end` are visible; columns right-align the rows, as
    left padding does. Memory beyond them is zero or holds retired values: finite in any case, so
    that a masked place adds exactly nothing to the attention.

    Args:
        keys: Prefilled keys `[B, H, S, D]`; row i becomes the rows `i * repeats ...`.
        values: Prefilled values `[B, H, S, D]`.
        repeats: Completions per prompt.
        rows: R, how many rows to make room for.
        room: How many more columns to make room for at once.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, *, repeats: int, rows: int, room: int = _GROWTH
    ) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.num_rows, self.first, self.end = 0, 0, keys.shape[2]
        self._buffers = [_buffer(states, rows, self.end + room) for states in (keys, values)]
        self.admit(keys, values, repeats=repeats)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends columns `[N, H, q, D]`; returns all visible keys and values `[N, H, S, D]`."""
        start, self.end = self.end, self.end + key_states.shape[2]
        if self.end > self._buffers[0].shape[2]:
            start = self._grow(start)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self.num_rows, :, start : self.end] = states
        return self._show()

    def admit(self, keys: Tensor, values: Tensor, *, repeats: int) -> None:
        """Adds prefilled rows `[B, H, L, D]`, L <= S, below the others, `repeats` times each."""
        size = len(keys) * repeats
        rows = slice(self.num_rows, self.num_rows + size)
        start = self.end - keys.shape[2]
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[rows, :, start : self.end] = states.repeat_interleave(repeats, dim=0)
        self.num_rows += size
        self._show()

    def keep(self, moves: RowMoves) -> None:
        """Drops rows; only those that fill a hole are copied."""
        targets, sources = moves.targets.to(self.device), moves.sources.to(self.device)
        for buffer in self._buffers if len(targets) else ():
            visible = buffer[:, :, self.first : self.end]
            visible[targets] = visible[sources]
        self.num_rows = len(moves.order)
        self._show()

    def drop_columns(self, count: int) -> None:
        """Forgets the `count` oldest visible columns."""
        self.first += count
        self._show()

    def get_seq_length(self) -> int:
        """S, the visible columns."""
        return self.end - self.first

    def _grow(self, start: int) -> int:
        """Moves the visible columns `first .. start` to wider buffers; returns the new `start`."""
        used = start - self.first
        needed = self.end - self.first
        for index, buffer in enumerate(self._buffers):
            grown = _buffer(buffer, len(buffer), needed + _GROWTH)
            grown[: self.num_rows, :, :used] = buffer[: self.num_rows, :, self.first : start]
            self._buffers[index] = grown
        self.first, self.end = 0, needed
        return used

    def _show(self) -> tuple[Tensor, Tensor]:
        # transformers reads these two attributes in places (masks, printing): keep them true.
        self.keys, self.values = (
            buffer[: self.num_rows, :, self.first : self.end] for buffer in self._buffers
        )
        return self.keys, self.values


class DecodingCache:
    """The cache of all layers, for the rows of a decoding batch.

    Args:
        prefilled: The cache that the model built for B prompts; taken over.
        num_prompts: B.
        repeats: Completions per prompt.
        rows: R, how many rows to make room for.
        room: How many more columns to make room for at once.
    """

    def __init__(
        self, prefilled: Cache, *, num_prompts: int, repeats: int, rows: int, room: int
    ) -> None:
        self.states = prefilled
        self.can_drop = is_reorderable(prefilled)
        self.growing = self.can_drop and all(_is_plain(layer) for layer in prefilled.layers)
        if self.growing:
            prefilled.layers[:] = [
                GrowingLayer(layer.keys, layer.values, repeats=repeats, rows=rows, room=room)
                for layer in prefilled.layers
            ]
        elif repeats > 1:
            prefilled.reorder_cache(torch.arange(num_prompts).repeat_interleave(repeats))

    def admit(self, prefilled: Cache, *, repeats: int) -> None:
        """Adds prompts to a growing cache; they must not be longer than the visible columns."""
        for layer, new in zip(self.states.layers, prefilled.layers, strict=True):
            layer.admit(new.keys, new.values, repeats=repeats)

    def keep(self, moves: RowMoves) -> None:
        """Drops the rows that are not kept."""
        if not self.growing:
            self.states.reorder_cache(moves.order)
            return
        for layer in self.states.layers:
            layer.keep(moves)

    def drop_columns(self, count: int) -> None:
        """Forgets the `count` oldest columns of a growing cache."""
        for layer in self.states.layers:
            layer.drop_columns(count)


def is_reorderable(states: object) -> bool:
    """Whether rows of a model's cache can be repeated and dropped.

    Only for transformers' own `DynamicCache`, whatever its layers: subclasses and other caches may
    hold states that `reorder_cache` does not know of.
    """
    return type(states) is DynamicCache


def _buffer(like: Tensor, rows: int, columns: int) -> Tensor:
    _, heads, _, width = like.shape
    # Zeros, not uninitialized memory: a stray NaN would survive its mask (0 * NaN is NaN).
    return like.new_zeros(rows, heads, columns, width)


def _is_plain(layer: Any) -> bool:
    """Whether a layer holds every key and value it has seen, and nothing else."""
    return type(layer) is DynamicLayer and layer.is_initialized and layer.keys.dim() == 4
