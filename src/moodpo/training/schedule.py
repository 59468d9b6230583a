"""Schedule: the learning rate with which a resumed run goes on."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["ScheduleCallback", "follow_schedule"]

logger = logging.getLogger(__name__)


class ScheduleCallback(TrainerCallback):  # type: ignore[misc]
    """Lets the first step after a resume take the rate that this run's schedule gives it.

    The Trainer restores the last rate of the checkpoint and asks its schedule from the next step
    on: a finished run made longer would take a step at rate 0 and then jump.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Sets the rate where it is not the schedule's, and says so."""
        if change := follow_schedule(lr_scheduler):
            logger.warning(
                "The learning rate goes on at %g, which this run's schedule of %d steps gives step "
                "%d; the checkpoint's schedule, which was another, had come to %g.",
                change[1],
                state.max_steps,
                state.global_step + 1,
                change[0],
            )


def follow_schedule(scheduler: Any) -> tuple[float, float] | None:
    """Sets an optimizer's rates to what its schedule gives the next step.

    Args:
        scheduler: What the Trainer made; any but a `LambdaLR` is left alone, for it has no rate
            that follows from the step alone.

    Returns:
        The first rate that changed, before and after; None where none did.
    """
    if not isinstance(scheduler, LambdaLR):
        return None
    changes = []
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        before = float(group["lr"])
        if before == float(rate):
            continue
        changes.append((before, float(rate)))
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    if changes:
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
    return changes[0] if changes else None
