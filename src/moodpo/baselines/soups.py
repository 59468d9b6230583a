"""Rewarded Soups: one policy per objective, interpolated in weight space when weights are known.

Ramé et al. 2023, "Rewarded soups: towards Pareto-optimal alignment by interpolating weights
fine-tuned on diverse rewards" (arXiv 2306.04488), Eq. 1: θ(w) = Σ_k w_k θ_k with every θ_k
fine-tuned from the same θ_0 on reward k alone. There the θ_k come from PPO; here from the same
online DPO as everything else, at the corners of the simplex, so that only the method differs. The
members never read weights: a soup is steered by its parameters alone.

With LoRA, θ_k = θ_0 + s_k B_k A_k, so a soup adds Σ_k w_k s_k B_k A_k to the base. PEFT's `linear`
combination averages the factors instead, which brings in cross terms B_i A_j that no policy was
trained with (peft#1155, peft#3004); `cat` stacks the factors and is exact, at K times the rank.
Shapes: K objectives and as many members.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from moodpo.baselines.base import BaselinePolicy
from moodpo.baselines.members import Setup, member_name, train_members
from moodpo.baselines.record import BaselineRecord
from moodpo.core.simplex import simplex_corners
from moodpo.errors import ConfigError
from moodpo.models.choice import AdapterChoice, adapter_at

__all__ = ["RewardedSoup", "Soups", "train_soup"]

Weights = tuple[float, ...]

DECIMALS = 6  # of a weight: finer differences are float32's noise
CACHE_SIZE = 16


class RewardedSoup(BaselinePolicy):
    """K adapters, one per objective in their order, mixed on demand.

    See `BaselinePolicy` for the arguments.

    Raises:
        ConfigError: If there is not one adapter per objective, or an adapter changes more than
            the low-rank part of weights, which a weighted sum would not describe.
    """

    kind = "soups"
    title = "Rewarded Soups"

    @classmethod
    def chosen(cls, model: nn.Module, record: BaselineRecord) -> AdapterChoice:
        """The members' soup at the weights."""
        return Soups(model, record.adapters, record.objectives)


class Soups:
    """Mixes members on demand, and keeps the soups that were asked for last.

    Args:
        model: A PEFT model that carries the members.
        members: Names of K adapters, in the order of the objectives.
        objectives: K names.
        cache_size: Soups that are kept; each takes K times the memory of one adapter.

    Raises:
        ConfigError: As `RewardedSoup`.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[str],
        objectives: Sequence[str],
        *,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        if len(members) != len(objectives):
            raise ConfigError(
                f"A soup needs one adapter per objective; there are {len(members)} for "
                f"{', '.join(objectives)}."
            )
        carried: Any = model.peft_config
        for name in members:
            _check_linear(name, carried[name])
        self._model: Any = model
        self._members = tuple(members)
        self.cache_size = cache_size
        self._soups: OrderedDict[Weights, str] = OrderedDict()
        self._made = 0

    def group(self, weights: Weights) -> Weights:
        """The weights without float32's noise."""
        return tuple(round(weight, DECIMALS) for weight in weights)

    def active(self, group: Weights) -> AbstractContextManager[Any]:
        """Switches to the soup, which is made if it is not there."""
        return adapter_at(self._model, self._adapter(group))

    def _adapter(self, weights: Weights) -> str:
        """Name of the adapter that is the soup: a member itself at a corner."""
        if weights.count(1.0) == 1 and weights.count(0.0) == len(weights) - 1:
            return self._members[weights.index(1.0)]
        if weights in self._soups:
            self._soups.move_to_end(weights)
            return self._soups[weights]
        while len(self._soups) >= self.cache_size:
            self._forget()
        self._made += 1
        name = f"soup-{self._made}"
        _mix(self._model, self._members, weights, name)
        self._soups[weights] = name
        return name

    def _forget(self) -> None:
        """Drops the soup that was asked for the longest ago."""
        _, name = self._soups.popitem(last=False)
        self._model.set_adapter(self._members[0], inference_mode=True)  # not the one to go
        self._model.delete_adapter(name)


def train_soup(model: str | nn.Module, **options: Any) -> RewardedSoup:
    """Trains one policy per objective: `args` say how long *each* is trained.

    Args:
        model: The base model, or its path; adapters are added to it in place.
        **options: Of `Setup.of`: `reward_funcs`, `args`, `train_dataset`, `peft_config`, …

    Returns:
        The policy, ready for a sweep or `save`.

    Raises:
        ConfigError: If model, adapters and settings do not fit together.
    """
    setup = Setup.of(model, **options)
    _check_linear("peft_config", setup.peft_config)
    corners = simplex_corners(len(setup.panel))
    trained, took = train_members(setup, corners, instructed=False)
    names = map(member_name, range(len(corners)))
    return setup.policy(RewardedSoup, trained, adapters=list(names), training=took)


def _mix(model: Any, members: tuple[str, ...], weights: Weights, name: str) -> None:
    """Adds the adapter whose change of weights is Σ_k w_k s_k B_k A_k."""
    from peft.tuners.lora.layer import LoraLayer

    chosen = [(m, w) for m, w in zip(members, weights, strict=True) if w != 0]
    model.add_weighted_adapter(
        [m for m, _ in chosen], [w for _, w in chosen], name, combination_type="cat"
    )
    for module in model.modules():
        # The members' scales are in the factors already; up to PEFT 0.21 a rank-stabilized
        # configuration scales the sum once more (peft#3449).
        if isinstance(module, LoraLayer) and name in module.scaling:
            module.scaling[name] = 1.0


def _check_linear(name: str, config: Any) -> None:
    odd = [
        field
        for field, plain in (("use_dora", False), ("bias", "none"), ("lora_bias", False))
        if getattr(config, field, plain) != plain
    ]
    odd += [field for field in ("modules_to_save",) if getattr(config, field, None)]
    if str(getattr(config, "peft_type", "LORA")).rpartition(".")[2] != "LORA" or odd:
        raise ConfigError(
            f"The adapter {name} is not plain LoRA ({', '.join(odd) or config.peft_type}), so a "
            "weighted sum of its factors is not the interpolation of its weights. Train soups "
            "with plain LoRA."
        )
