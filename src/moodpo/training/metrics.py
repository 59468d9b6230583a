"""Metrics: sums and counts on every device, one reduction per log.

Knows nothing of models. A metric is a weighted mean: what is added are sums and how many values
they sum; padding is never counted because it is never added.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["MetricStore", "PhaseClock", "with_deviations"]

Reduce = Callable[[Tensor], Tensor]


class MetricStore:
    """Means that can be added to piecewise and are reduced over all processes at once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """Adds `count` values whose sum is `total`; tensors stay on their device, unsynced."""
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def add_values(self, name: str, values: Tensor) -> None:
        """Adds the finite ones among values of any shape."""
        finite = values.isfinite()
        self.add(name, values.where(finite, torch.zeros_like(values)).sum(), finite.sum())

    @property
    def names(self) -> list[str]:
        """What was added since the last `pop_means`, sorted."""
        return sorted(self._sums)

    def complete(self, names: Iterable[str]) -> None:
        """Adds no value to each name, so that processes can add up stores of the same names.

        A process without a pair to train has fewer metrics than the others.
        """
        for name in names:
            self.add(name, 0.0, 0)

    def pop_means(self, reduce: Reduce = lambda stacked: stacked) -> dict[str, float]:
        """All means since the last call, and forgets them.

        Args:
            reduce: Sums a tensor over processes. Every process must have added the same names.

        Returns:
            A mean per name; names without any value are left out.
        """
        if not self._sums:
            return {}
        names = self.names
        stacked = torch.tensor(
            [[float(self._sums[n]), float(self._counts[n])] for n in names], dtype=torch.float64
        )
        stacked = reduce(stacked)
        self._sums, self._counts = {}, {}
        return {n: (s / c).item() for n, (s, c) in zip(names, stacked, strict=True) if c > 0}

    def state_dict(self) -> dict[str, list[float]]:
        """Sums and counts, so that a resumed run's first log is the uninterrupted one's."""
        return {n: [float(self._sums[n]), float(self._counts[n])] for n in sorted(self._sums)}

    def load_state_dict(self, state: Mapping[str, Sequence[float | None]]) -> None:
        """Restores what `state_dict` returned."""
        # JSON has no NaN: a sum that was one is null.
        values = {n: [math.nan if v is None else v for v in pair] for n, pair in state.items()}
        self._sums = {n: total for n, (total, _) in values.items()}
        self._counts = {n: count for n, (_, count) in values.items()}


def with_deviations(means: Mapping[str, float]) -> dict[str, float]:
    """Turns the mean square of each objective into its standard deviation."""
    result = dict(means)
    for name in means:
        if name.startswith("objective/") and name.endswith("/square"):
            stem = name.removesuffix("/square")
            variance = result.pop(name) - means[f"{stem}/mean"] ** 2
            result[f"{stem}/std"] = max(variance, 0.0) ** 0.5
    return result


class PhaseClock:
    """Seconds per phase of a step; tells a listener which phase has begun."""

    def __init__(self, listener: Callable[[str], None] = lambda _: None) -> None:
        self.seconds: dict[str, float] = {}
        self.listener = listener

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times what happens within it."""
        self.listener(phase)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """Seconds per phase since the last call, and starts anew."""
        seconds, self.seconds = self.seconds, {}
        return seconds
