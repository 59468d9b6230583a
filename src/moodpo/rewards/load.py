"""Load: specs, callables and models → rewards, one per objective, in order.

Rewards that point to the same checkpoint share the loaded model, and heads on equal backbones
share the backbone. Shapes: K objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from moodpo.errors import RewardSpecError
from moodpo.rewards.base import Reward
from moodpo.rewards.checkpoint import Checkpoint, load_checkpoint, share_backbone
from moodpo.rewards.checks import check_config, check_target
from moodpo.rewards.function import FunctionReward, import_function
from moodpo.rewards.lexical import LEXICAL, LexicalReward
from moodpo.rewards.model import ModelReward
from moodpo.rewards.specs import (
    RewardSpec,
    check_objective_names,
    object_spec,
    objective_name,
    parse_spec,
    replace_name,
)

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
    if isinstance(specs, str):
        raise RewardSpecError(f"Rewards are a list of specs, got the text {specs!r}. Pass a list.")
    given = list(names or [None] * len(specs))
    tokenizers = list(processing_classes or [None] * len(specs))
    if not len(given) == len(tokenizers) == len(specs):
        raise RewardSpecError(
            f"Got {len(specs)} rewards, {len(given)} names and {len(tokenizers)} processing "
            "classes. Pass one of each per reward, None where the default will do."
        )
    builder = _Builder(device=device, dtype=dtype, batch_size=batch_size)
    plans = [_read(spec, name) for spec, name in zip(specs, given, strict=True)]
    check_objective_names([name for name, _ in plans])
    for _, plan in plans:
        if isinstance(plan, RewardSpec):
            check_target(plan)
    return [
        builder.build(name, plan, tokenizer)
        for (name, plan), tokenizer in zip(plans, tokenizers, strict=True)
    ]


def _read(spec: RewardLike, name: str | None) -> tuple[str, Any]:
    """The objective's name, with what to build it from. Loads nothing."""
    if isinstance(spec, str):
        parsed = replace_name(parse_spec(spec), name)
        return parsed.name, parsed
    if isinstance(spec, torch.nn.Module):
        plan = object_spec(_path_of(spec) or type(spec).__name__, name)
        return plan.name, _Given(plan, spec)
    if isinstance(spec, Reward):
        if name not in (None, spec.name):
            raise RewardSpecError(
                f"A reward object is named {spec.name!r}, so it cannot be named {name!r} here. "
                "Rename the object, or pass None."
            )
        return spec.name, spec
    if callable(spec):
        return name or objective_name(getattr(spec, "__name__", type(spec).__name__)), spec
    raise RewardSpecError(
        f"A reward cannot be a {type(spec).__name__}. Pass a preset's name, a folder, a Hub id, "
        "a sequence classifier, or a function f(prompts, completions, **columns)."
    )


@dataclass(frozen=True, slots=True)
class _Given:
    """A model that was passed as an object, with how to read it."""

    spec: RewardSpec
    model: Any


class _Builder:
    """Holds what one call shares: defaults, and the checkpoints loaded so far."""

    def __init__(
        self,
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        batch_size: int,
    ) -> None:
        if batch_size < 1:
            raise RewardSpecError(f"The reward batch size is {batch_size}. Pass 1 or more.")
        self.asked_device = device
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        self.batch_size = batch_size
        self.checkpoints: dict[tuple[str, str | None], Checkpoint] = {}

    def build(self, name: str, plan: Any, tokenizer: PreTrainedTokenizerBase | None) -> Reward:
        if isinstance(plan, RewardSpec):
            return self._from_spec(plan)
        if isinstance(plan, _Given):
            return self._from_module(plan.spec, plan.model, tokenizer)
        if isinstance(plan, Reward):
            return plan
        return FunctionReward(plan, name=name)

    def _from_spec(self, spec: RewardSpec) -> Reward:
        if spec.kind == "lexical":
            return LexicalReward(LEXICAL[spec.target], name=spec.name)
        if spec.kind == "function":
            return FunctionReward(import_function(spec.target), name=spec.name, spec=spec.target)
        key = (spec.checkpoint, spec.pinned)
        if key not in self.checkpoints:
            loaded = load_checkpoint(spec, device=self.device, dtype=self.dtype)
            share_backbone(loaded, self.checkpoints.values())
            self.checkpoints[key] = loaded
        return ModelReward(spec, self.checkpoints[key], batch_size=self.batch_size)

    def _from_module(
        self, spec: RewardSpec, model: Any, tokenizer: PreTrainedTokenizerBase | None
    ) -> Reward:
        if not hasattr(model, "base_model_prefix") or hasattr(model, "peft_config"):
            raise RewardSpecError(
                f"Reward {spec.name!r} is a {type(model).__name__}, expected a transformers "
                "sequence classifier. Merge an adapter first (merge_and_unload)."
            )
        check_config({**model.config.to_dict(), "architectures": [type(model).__name__]}, spec)
        model = model if self.asked_device is None else model.to(self.device)
        checkpoint = Checkpoint.from_model(model, tokenizer, source=spec.target)
        return ModelReward(spec, checkpoint, batch_size=self.batch_size)


def _path_of(model: torch.nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None
