"""Fixed-weight online DPO: one policy per weight vector, each with a single trade-off to learn.

What a single steerable policy is measured against from above: given as many completions *per
policy* it is the envelope that steering can hope to reach, at M times the cost. A weight vector
that was not trained is answered by the nearest one that was. Shapes: M members, K objectives.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.baselines.base import BaselinePolicy
from moodpo.baselines.members import Setup, member_name, train_members
from moodpo.baselines.record import BaselineRecord
from moodpo.conditioning.instruction import Conditioner
from moodpo.conditioning.weights import validate_weights
from moodpo.containers import rows_of
from moodpo.errors import ConfigError
from moodpo.models.choice import AdapterChoice, adapter_at
from moodpo.records import Prompt

__all__ = ["FixedWeightPolicy", "nearest_member", "train_fixed_weights"]

Weights = tuple[float, ...]


class FixedWeightPolicy(BaselinePolicy):
    """M adapters; the one whose training weights are nearest answers.

    See `BaselinePolicy` for the arguments. `record.details` holds `weights` `[M][K]` and
    `instructed`: whether members read their own training weights as an instruction.
    """

    kind = "fixed"
    title = "fixed-weight online DPO"

    @property
    def trained_weights(self) -> tuple[Weights, ...]:
        """M weight vectors, in the order of the adapters."""
        return _trained(self.record)

    @classmethod
    def written(cls, record: BaselineRecord) -> Conditioner:
        """The nearest member's own weights, or the prompt alone."""
        if not record.details["instructed"]:
            return super().written(record)
        return _OwnWeights.from_dict({**record.conditioning, "trained": _trained(record)})

    @classmethod
    def chosen(cls, model: nn.Module, record: BaselineRecord) -> AdapterChoice:
        """The nearest member."""
        return _Nearest(model, record)


@dataclass(frozen=True, kw_only=True)
class _OwnWeights(Conditioner):
    """Writes the weights that the nearest member was trained at."""

    trained: tuple[Weights, ...]

    def messages(self, prompt: Prompt, weights: Sequence[float] | None) -> list[dict[str, str]]:
        """The conversation under the instruction that the member knows."""
        if weights is not None:
            weights = self.trained[nearest_member(weights, self.trained)]
        return super().messages(prompt, weights)


class _Nearest:
    """The member that was trained nearest to the weights."""

    def __init__(self, model: nn.Module, record: BaselineRecord) -> None:
        self._model, self._names, self._trained = model, record.adapters, _trained(record)

    def group(self, weights: Weights) -> int:
        return nearest_member(weights, self._trained)

    def active(self, group: int) -> AbstractContextManager[Any]:
        return adapter_at(self._model, self._names[group])


def _trained(record: BaselineRecord) -> tuple[Weights, ...]:
    return tuple(tuple(row) for row in record.details["weights"])


def nearest_member(weights: Sequence[float], trained: Sequence[Sequence[float]]) -> int:
    """The index of the nearest trained weights in Euclidean distance, the first of equals.

    Args:
        weights: K values.
        trained: M x K values, M at least 1.
    """
    # Rounded, or two that are as near would be told apart by the noise of float32 weights.
    distances = [
        round(sum((a - b) ** 2 for a, b in zip(weights, row, strict=True)), 6) for row in trained
    ]
    return distances.index(min(distances))


def train_fixed_weights(
    model: str | nn.Module,
    weights: Tensor | Sequence[Sequence[float]],
    *,
    instructed: bool = True,
    **options: Any,
) -> FixedWeightPolicy:
    """Trains one policy per weight vector: `args` say how long *each* is trained.

    A member is the method at constant weights: by default it reads the same instruction as the
    steerable policy would, so that both start from the same answers and only sharing one model
    between all weights differs.

    Args:
        model: The base model, or its path; adapters are added to it in place.
        weights: `[M, K]` on the simplex.
        instructed: Whether members read their weights; False shows them the prompt alone.
        **options: Of `Setup.of`: `reward_funcs`, `args`, `train_dataset`, `peft_config`, …

    Returns:
        The policy, ready for a sweep or `save`.

    Raises:
        ConfigError: Without weights, or if model and settings do not fit together.
        WeightsError: If a weight vector does not fit the objectives.
    """
    setup = Setup.of(model, **options)
    given = rows_of(weights)
    rows = [weights] if given is None else given
    if not rows or (isinstance(rows[0], Sized) and not len(rows[0])):
        raise ConfigError("There are no weights to train at. Pass at least one weight vector.")
    rows = [list(validate_weights(row, setup.panel.names)) for row in rows]
    trained, took = train_members(setup, torch.tensor(rows), instructed=instructed)
    return setup.policy(
        FixedWeightPolicy,
        trained,
        adapters=list(map(member_name, range(len(rows)))),
        details={"weights": rows, "instructed": instructed},
        training=took,
    )
