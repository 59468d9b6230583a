"""Which of a model's adapters answer: one model that carries several is several policies.

Knows nothing of prompts or of how adapters were trained. Shapes: K objectives.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from torch import nn

__all__ = ["AdapterChoice", "AsLoaded", "WithoutAdapters", "adapter_at"]


class AdapterChoice(Protocol):
    """Which adapters answer under which weights: rows of one group share them."""

    def group(self, weights: tuple[float, ...]) -> Hashable:
        """The group of a row that is asked with these K weights."""

    def active(self, group: Any) -> AbstractContextManager[Any]:
        """Within it, once, the model answers for that group."""


class AsLoaded:
    """The model as it is, for all weights."""

    def group(self, weights: tuple[float, ...]) -> Hashable:
        """There is one group."""
        return None

    def active(self, group: Any) -> AbstractContextManager[Any]:
        """Changes nothing."""
        return nullcontext()


class WithoutAdapters(AsLoaded):
    """The model under its adapters, if it carries any: the model before training.

    Args:
        model: What they lie on must be as it was before training.
    """

    def __init__(self, model: nn.Module) -> None:
        self._switch: Any = getattr(model, "disable_adapter", nullcontext)

    def active(self, group: Any) -> AbstractContextManager[Any]:
        """Switches the adapters off."""
        return self._switch()  # type: ignore[no-any-return]


@contextmanager
def adapter_at(model: Any, name: str) -> Iterator[None]:
    """Within it (and until the next), the model computes with the adapter of that name."""
    model.set_adapter(name, inference_mode=True)
    yield
