from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

from moodpo.generation.cache import DecodingCache, GrowingLayer, RowMoves, is_reorderable

HEADS, WIDTH = 2, 3


def states(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, HEADS, columns, WIDTH, generator=generator)


def test_moves_fill_holes_from_the_end() -> None:
    alive = torch.tensor([True, False, True, False, True, True])
    moves = RowMoves.keeping(alive)
    assert moves.order.tolist() == [0, 4, 2, 5]
    assert moves.targets.tolist() == [1, 3]
    assert moves.sources.tolist() == [4, 5]


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_moves_keep_exactly_the_living(alive: list[bool]) -> None:
    moves = RowMoves.keeping(torch.tensor(alive))
    assert sorted(moves.order.tolist()) == [i for i, lives in enumerate(alive) if lives]
    assert len(moves.targets) == len(moves.sources) <= alive.count(False)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_growing_layer_is_a_concatenation(data: st.DataObject) -> None:
    """Random appends, retirements, admissions and trims, against a plain tensor that is rebuilt."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    capacity, repeats = 12, 2
    keys, values = states(generator, 3, 5), states(generator, 3, 5)
    layer = GrowingLayer(keys, values, repeats=repeats, rows=capacity, room=1)
    plain = [t.repeat_interleave(repeats, dim=0) for t in (keys, values)]
    for action in data.draw(st.lists(st.sampled_from(["append", "keep", "admit", "drop"]))):
        rows, columns = plain[0].shape[0], plain[0].shape[2]
        if action == "append":
            new = [states(generator, rows, 1) for _ in range(2)]
            plain = [torch.cat(pair, dim=2) for pair in zip(plain, new, strict=True)]
            shown = layer.update(*new)
            assert all(map(torch.equal, shown, plain))
        elif action == "keep":
            alive = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
            alive[0] = True
            moves = RowMoves.keeping(alive)
            layer.keep(moves)
            plain = [t[moves.order] for t in plain]
        elif action == "admit" and rows + repeats <= capacity:
            length = data.draw(st.integers(1, columns))
            new = [states(generator, 1, length) for _ in range(2)]
            layer.admit(*new, repeats=repeats)
            # What lies left of the new rows is masked; it only has to be finite.
            left = [layer.keys[rows:, :, :-length], layer.values[rows:, :, :-length]]
            assert all(t.isfinite().all() for t in left)
            right = [t.repeat_interleave(repeats, dim=0) for t in new]
            joined = [torch.cat(pair, dim=2) for pair in zip(left, right, strict=True)]
            plain = [torch.cat(pair) for pair in zip(plain, joined, strict=True)]
        elif action == "drop" and columns > 1:
            count = data.draw(st.integers(0, columns - 1))
            layer.drop_columns(count)
            plain = [t[:, :, count:] for t in plain]
        assert torch.equal(layer.keys, plain[0])
        assert torch.equal(layer.values, plain[1])
        assert layer.get_seq_length() == plain[0].shape[2]
        assert layer.get_mask_sizes(1) == (plain[0].shape[2] + 1, 0)


def test_growth_does_not_happen_on_every_token() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = GrowingLayer(
        states(generator, 1, 2), states(generator, 1, 2), repeats=1, rows=1, room=1
    )
    addresses = set()
    for _ in range(100):
        keys, _ = layer.update(states(generator, 1, 1), states(generator, 1, 1))
        addresses.add(keys.data_ptr())
    assert len(addresses) == 2


def filled(config: LlamaConfig | None) -> DynamicCache:
    cache = DynamicCache(config=config)
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        cache.update(states(generator, 2, 4), states(generator, 2, 4), layer)
    return cache


def test_only_plain_layers_are_replaced() -> None:
    plain = DecodingCache(filled(None), num_prompts=2, repeats=2, rows=4, room=8)
    assert plain.growing
    assert all(type(layer) is GrowingLayer for layer in plain.states.layers)

    config = LlamaConfig(num_hidden_layers=2)
    config.layer_types = ["full_attention", "sliding_attention"]
    config.sliding_window = 3
    mixed = DecodingCache(filled(config), num_prompts=2, repeats=2, rows=4, room=8)
    assert not mixed.growing
    assert mixed.can_drop
    assert type(mixed.states.layers[0]) is DynamicLayer
    first, second, third, fourth = mixed.states.layers[1].keys
    assert torch.equal(first, second)
    assert torch.equal(third, fourth)
    assert not torch.equal(second, third)
    mixed.keep(RowMoves.keeping(torch.tensor([False, True, True, False])))
    assert torch.equal(mixed.states.layers[1].keys, torch.stack([third, second]))


def test_subclasses_of_a_cache_are_not_trusted() -> None:
    class WithMore(DynamicCache):  # type: ignore[misc]
        pass

    assert is_reorderable(DynamicCache())
    assert not is_reorderable(WithMore())
    assert not is_reorderable(((torch.zeros(1), torch.zeros(1)),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_keep_the_type_and_start_finite(dtype: torch.dtype) -> None:
    keys = torch.ones(1, HEADS, 2, WIDTH, dtype=dtype)
    layer = GrowingLayer(keys, keys, repeats=2, rows=5, room=3)
    assert layer.keys.dtype == dtype
    assert all(buffer.isfinite().all() for buffer in layer._buffers)
