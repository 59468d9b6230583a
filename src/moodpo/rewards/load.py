"""Load: specs, callables and models → rewards, one per objective, in order.

Rewards that point to the same checkpoint share the loaded model, and heads on equal backbones
share the backbone. Shapes: K objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from moodpo.errors import RewardSpecError
from moodpo.rewards.base import Reward
from moodpo.rewards.checkpoint import Checkpoint
from moodpo.rewards.checks import check_config
from moodpo.rewards.classifiers import object_spec
from moodpo.rewards.function import FunctionReward
from moodpo.rewards.grammar import RewardSpec, check_objective_names
from moodpo.rewards.kinds import Shared, kind_of
from moodpo.rewards.model import ModelReward
from moodpo.rewards.scoring import ClassifierSpec
from moodpo.rewards.specs import parse_spec, refuse_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RewardLike", "load_rewards"]

RewardLike: TypeAlias = "str | Callable[..., Any] | PreTrainedModel | Reward"


def load_rewards(
    specs: Sequence[RewardLike],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 16,
    names: Sequence[str | None] | None = None,
    processing_classes: Sequence[PreTrainedTokenizerBase | None] | None = None,
) -> list[Reward]:
    """Builds K rewards.

    Args:
        specs: One per objective: a spec (see `moodpo.rewards.specs`), a callable
            `f(prompts, completions, **columns) -> list[float | None]`, a loaded sequence
            classifier, or anything that is a `Reward` already.
        device: For models; the current GPU if there is one, else the CPU. A model that was passed
            as an object stays where it is unless a device is given.
        dtype: For models loaded here; bfloat16 on a GPU and float32 on a CPU when omitted. Scores
            are projected in float32 either way.
        batch_size: Texts per forward pass of a reward model.
        names: Objective names, None where the default will do. A model passed as an object has its
            options here, as in `joke#label=1&input=response` or `helpful#like=helpful`.
        processing_classes: Tokenizers of models passed as objects, None elsewhere; when omitted,
            the one at the model's `name_or_path`.

    Returns:
        K rewards with distinct names, in the order of `specs`.

    Raises:
        RewardSpecError: Naming the spec, what is wrong with it, and the remedy.
    """
    refuse_text(specs)
    given = list(names or [None] * len(specs))
    tokenizers = list(processing_classes or [None] * len(specs))
    if not len(given) == len(tokenizers) == len(specs):
        raise RewardSpecError(
            f"Got {len(specs)} rewards, {len(given)} names and {len(tokenizers)} processing "
            "classes. Pass one of each per reward, None where the default will do."
        )
    shared = _shared(device, dtype, batch_size)
    plans = [_read(*each) for each in zip(specs, given, tokenizers, strict=True)]
    check_objective_names([plan.name for plan in plans])
    for plan in plans:
        if isinstance(plan, RewardSpec):
            kind_of(plan).check(plan)
    return [_build(plan, shared, moved=device is not None) for plan in plans]


@dataclass(frozen=True, slots=True)
class _Given:
    """A model that was passed as an object, with how to read it."""

    spec: ClassifierSpec
    model: Any
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def name(self) -> str:
        return self.spec.name


def _shared(
    device: torch.device | str | None, dtype: torch.dtype | None, batch_size: int
) -> Shared:
    if batch_size < 1:
        raise RewardSpecError(f"The reward batch size is {batch_size}. Pass 1 or more.")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Shared(device=device, dtype=dtype or default, batch_size=batch_size)


def _read(
    reward: RewardLike, name: str | None, tokenizer: PreTrainedTokenizerBase | None
) -> RewardSpec | _Given | Reward:
    """What to build the reward from, under the objective's name. Loads nothing."""
    if isinstance(reward, str):
        spec = parse_spec(reward)
        return spec if name is None else replace(spec, name=name)
    if isinstance(reward, torch.nn.Module):
        return _Given(
            object_spec(_path_of(reward) or type(reward).__name__, name), reward, tokenizer
        )
    if isinstance(reward, Reward):
        if name not in (None, reward.name):
            raise RewardSpecError(
                f"A reward object is named {reward.name!r}, so it cannot be named {name!r} here. "
                "Rename the object, or pass None."
            )
        return reward
    if callable(reward):
        return FunctionReward.of(reward, name)
    raise RewardSpecError(
        f"A reward cannot be a {type(reward).__name__}. Pass a preset's name, a folder, a Hub id, "
        "a sequence classifier, or a function f(prompts, completions, **columns)."
    )


def _build(plan: RewardSpec | _Given | Reward, shared: Shared, *, moved: bool) -> Reward:
    """The reward; `moved` takes models that were passed as objects to the device, too."""
    if isinstance(plan, RewardSpec):
        reward: Reward = kind_of(plan).build(plan, shared)
        return reward
    if not isinstance(plan, _Given):
        return plan
    spec, model = plan.spec, plan.model
    if not hasattr(model, "base_model_prefix") or hasattr(model, "peft_config"):
        raise RewardSpecError(
            f"Reward {spec.name!r} is a {type(model).__name__}, expected a transformers "
            "sequence classifier. Merge an adapter first (merge_and_unload)."
        )
    check_config({**model.config.to_dict(), "architectures": [type(model).__name__]}, spec)
    model = model.to(shared.device) if moved else model
    checkpoint = Checkpoint.from_model(model, plan.tokenizer, source=spec.target)
    return ModelReward(spec, checkpoint, batch_size=shared.batch_size)


def _path_of(model: torch.nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None
