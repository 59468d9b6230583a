"""Guard: a NaN or an infinity ends a run before it reaches the weights or the disk.

Loss and gradient are looked at before the optimizer steps, the trained weights after it, before
training begins and before anything is saved. All processes come to the same decision: gradients
and weights are the same everywhere, and what the losses are is summed over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moodpo.errors import ConfigError, DivergenceError
from moodpo.models.savable import are_finite, name_non_finite, some_of, trained_parameters
from moodpo.records import PairBatch
from moodpo.rewards.normalize import Normalizer

__all__ = [
    "MAX_SKIPPED_STEPS",
    "NumberGuard",
    "find_source",
]


MAX_SKIPPED_STEPS = 24
"""Steps in a row that a gradient scaler may skip: it starts at 2^16 and halves with each."""

Reduce = Callable[[Tensor], Tensor]


class NumberGuard(TrainerCallback):  # type: ignore[misc]
    """Raises before a non-finite loss or gradient is stepped on, and after a step that overflowed.

    Args:
        objectives: K names, in order.
        normalizer: Returns the one in use: it is replaced when a run is resumed.
        reduce: Sums a tensor over processes.
        scaler: Returns the gradient scaler of float16 training, or None. It skips steps whose
            gradient overflowed and lowers its scale, which is no divergence until it goes on.
    """

    def __init__(
        self,
        objectives: Sequence[str],
        *,
        normalizer: Callable[[], Normalizer],
        reduce: Reduce,
        scaler: Callable[[], Any] = lambda: None,
    ) -> None:
        self._objectives, self._normalizer = tuple(objectives), normalizer
        self._reduce, self._scaler = reduce, scaler
        self._losses: list[tuple[Tensor, PairBatch]] = []
        self._skipped = 0

    def note_loss(self, loss: Tensor, pairs: PairBatch) -> None:
        """Remembers a micro-batch's loss until the step, without waiting for the device."""
        self._losses.append((loss.detach(), pairs))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Refuses weights that are not finite from the start, such as a damaged checkpoint's.

        Raises:
            ConfigError: Naming the first of them.
        """
        self._losses, self._skipped = [], 0
        if model is not None and (names := name_non_finite(model.named_parameters())):
            raise ConfigError(
                f"The weights that training would go on from are NaN or infinite: "
                f"{some_of(names)}. Start from another model, or resume from an earlier checkpoint."
            )

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at the step's losses and gradient, on every process alike.

        Raises:
            DivergenceError: If the optimizer must not step.
        """
        losses, self._losses = self._losses, []
        if found := self._bad_loss(losses):
            raise DivergenceError(_told(f"{found} at step {state.global_step + 1}", args, state))
        if model is None:
            return
        if are_finite(p.grad for p in model.parameters() if p.grad is not None):
            self._skipped = 0
            return
        self._skipped += 1
        scaler = self._scaler()
        if scaler is not None and scaler.is_enabled() and self._skipped <= MAX_SKIPPED_STEPS:
            return  # it skips this step by itself
        what = f"The gradient is NaN or infinite at step {state.global_step + 1}"
        raise DivergenceError(_told(what, args, state))

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at what the step made of the trained weights.

        Raises:
            DivergenceError: If they are not finite any more.
        """
        if model is None:
            return
        if names := name_non_finite(trained_parameters(model)):
            raise DivergenceError(
                f"Step {state.global_step + 1} made weights NaN or infinite ({some_of(names)}), at "
                f"learning_rate {args.learning_rate:g}. Nothing of it was saved. Lower "
                f"learning_rate, and {_go_on(args, state)}"
            )

    def _bad_loss(self, losses: Sequence[tuple[Tensor, PairBatch]]) -> str | None:
        """What to say of a step's losses if one is not finite, on any process."""
        values = torch.stack([loss.float() for loss, _ in losses]) if losses else torch.zeros(1)
        bad = (~values.isfinite()).sum().reshape(1).float()
        if not bool(self._reduce(bad)):
            return None
        for loss, pairs in losses:
            if not bool(loss.isfinite()):
                source = find_source(pairs, self._objectives, self._normalizer())
                return f"The loss is {loss.item()}, because of {source},"
        return "The loss is NaN or infinite on another process"


def find_source(pairs: PairBatch, objectives: Sequence[str], normalizer: Normalizer) -> str:
    """What made the loss of some pairs NaN or infinite, in words.

    Args:
        pairs: P pairs with reference log-probabilities.
        objectives: K names, in order.
        normalizer: Puts their rewards on one scale.
    """
    normalized = normalizer.normalize(pairs.rewards)  # [P, 2, K]
    finite = normalized.isfinite().flatten(0, -2).all(dim=0)  # [K]
    if odd := [name for name, fine in zip(objectives, finite.tolist(), strict=True) if not fine]:
        return f"the normalized rewards of {', '.join(odd)}"
    if not are_finite([pairs.utilities]):
        return f"the utilities of {', '.join(objectives)}"
    if pairs.ref_logps is not None and not are_finite([pairs.ref_logps]):
        return "the reference's log-probabilities"
    return "the policy's log-probabilities"


def _told(what: str, args: TrainingArguments, state: TrainerState) -> str:
    return (
        f"{what}. The optimizer did not step: the weights are still those of step "
        f"{state.global_step}. Lower learning_rate or raise beta, and {_go_on(args, state)}"
    )


def _go_on(args: TrainingArguments, state: TrainerState) -> str:
    """Where a run can be continued from: the newest checkpoint of a step that was finite."""
    found = {}
    for path in Path(args.output_dir).glob("checkpoint-*"):
        step = path.name.rpartition("-")[2]
        if step.isdigit() and int(step) <= state.global_step:
            found[int(step)] = path
    if not found:
        return "start again: there is no checkpoint yet (save_steps says how often one is written)."
    return f"resume from the last good checkpoint, {found[max(found)]}."
