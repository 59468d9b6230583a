"""How far a model's layers look back, and by which positions: what it says of itself.

By its configuration, the cache that transformers would make for it, and the attributes of its
modules. Nothing is run here; `trial` does that.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["Reach", "numbers", "reach_of", "says_positions", "text_config", "unwrapped"]

# Settings that say how many tokens of a sequence a query sees, itself included.
WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size")
# In names of anything else that may be one; what it means in tokens is the model's own affair.
LOCAL = ("window", "chunk", "local_att", "index_topk", "index_block")
NOT_LOCAL = ("max_window_layers", "use_sliding_window", "pattern", "chunk_size_feed_forward")


class Reach(NamedTuple):
    """How far every layer of a model looks back."""

    window: int | None = None  # tokens of a sequence that every layer sees whole; None for any
    reason: str = ""  # why there is no such number


def reach_of(model: nn.Module) -> Reach:
    """How far back every layer sees: the smallest of all windows and chunks that are found.

    Args:
        model: A language model, possibly wrapped by PEFT.
    """
    config = text_config(model)
    layers = _cache_layers(config)
    other = (DynamicLayer, DynamicSlidingWindowLayer)
    if kinds := sorted({type(layer).__name__ for layer in layers if type(layer) not in other}):
        return Reach(reason=f"layers that are not plain attention: {', '.join(kinds)}")
    said = [] if config is None else list(numbers(config.to_dict()))
    for module in model.modules():
        said += numbers(vars(module))
    if unknown := [(name, n) for name, n in said if _is_local(name) and name not in WINDOWS]:
        name, number = unknown[0]
        return Reach(reason=f"local attention, {name} {number}")
    windows = [number for name, number in said if name in WINDOWS]
    windows += [layer.sliding_window for layer in layers if hasattr(layer, "sliding_window")]
    return Reach(min(windows, default=None))


def says_positions(model: nn.Module) -> bool:
    """Whether a model by its own account places tokens by the position ids that it is given.

    Args:
        model: A language model, possibly wrapped by PEFT.
    """
    config = text_config(model)
    takes = "position_ids" in inspect.signature(unwrapped(model).forward).parameters
    return takes and not (config is not None and _names_alibi(config.to_dict()))


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that writes text; None if the model has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None


def unwrapped(model: nn.Module) -> Any:
    """The model within PEFT's wrapper."""
    base: Any = model
    return base.get_base_model() if hasattr(base, "get_base_model") else base


def numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers above 0 in nested settings and lists, by name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from numbers(value)
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, int) and not isinstance(each, bool) and each > 0:
                yield str(name), each


def _is_local(name: str) -> bool:
    named = any(word in name for word in LOCAL)
    return named and not any(word in name for word in NOT_LOCAL)


def _cache_layers(config: Any) -> list[Any]:
    """The layers of the cache that transformers would make; none where it cannot say."""
    try:
        return list(DynamicCache(config=config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _names_alibi(settings: Mapping[str, Any]) -> bool:
    """`alibi: True`, `position_embedding_type: alibi`, and the same in nested settings."""
    return any(
        _names_alibi(value)
        if isinstance(value, Mapping)
        else value == "alibi" or ("alibi" in str(name) and bool(value))
        for name, value in settings.items()
    )
