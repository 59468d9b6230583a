"""Alarms: what of a run's numbers means that it learns nothing, in plain words.

Pure functions over means and counts of all processes, and a watch that ends a run without a signal.
Knows no model and no rewards, only their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moodpo.training.pairs import PairStatistics

__all__ = ["MAX_UNDEFINED_STEPS", "Counts", "SignalWatch", "find_alarms"]

MAX_UNDEFINED_STEPS = 8
"""Optimizer steps in a row without a single defined pair after which a run ends."""

Reduce = Callable[[Tensor], Tensor]

FLAT = 1e-6  # a standard deviation that small, relative to the mean, is rounding
MOST = 0.5


@dataclass(slots=True)
class Counts:
    """What became of labelings and steps since a run began, or since its last log."""

    steps: int = 0
    idle_steps: int = 0  # without an active pair
    labeled: float = 0
    active: float = 0
    undefined: float = 0

    def add(self, *, labeled: float, active: float, undefined: float) -> None:
        """Adds one optimizer step's pairs, over all processes."""
        self.steps += 1
        self.idle_steps += active == 0
        self.labeled += labeled
        self.active += active
        self.undefined += undefined


def find_alarms(
    means: Mapping[str, float],
    counts: Counts,
    objectives: Sequence[str],
    *,
    max_new_tokens: int,
) -> dict[str, str]:
    """What a user should be told of the steps since the last log.

    Args:
        means: Metrics by name, as logged; an objective without any score has no mean.
        counts: Of the same steps.
        objectives: K names.
        max_new_tokens: Of the run.

    Returns:
        Kind of alarm -> message.
    """
    found: dict[str, str] = {}
    if not counts.steps:
        return found
    for name in objectives:
        stem = f"objective/{name}"
        if f"{stem}/mean" not in means:
            found[f"{name} without scores"] = (
                f"The reward {name} gave no score (NaN or None) to any answer. Without it no pair "
                "is defined, and nothing is learned."
            )
        elif means.get(f"{stem}/std", 1.0) <= FLAT * abs(means[f"{stem}/mean"]):
            found[f"{name} without variance"] = (
                f"The reward {name} gave every answer the same score, {means[f'{stem}/mean']:g}: "
                "it cannot tell answers apart, and its weight has no effect."
            )
    if MOST * counts.labeled <= counts.undefined and counts.labeled:
        found["undefined pairs"] = (
            f"{counts.undefined / counts.labeled:.0%} of the pairs are undefined: a score of one "
            "of their answers is missing. They are not trained on."
        )
    if counts.idle_steps:
        found["steps without pairs"] = (
            f"{counts.idle_steps} of {counts.steps} steps had no pair to train on: "
            f"{_why_idle(counts)}."
        )
    if means.get("completions/truncated", 0.0) >= 1.0:
        found["answers that are cut"] = (
            f"Every answer was cut at {max_new_tokens} tokens (max_new_tokens): rewards score text "
            "without an end. Raise max_new_tokens if answers should end."
        )
    return found


def _why_idle(counts: Counts) -> str:
    if counts.labeled and counts.undefined == counts.labeled:
        return "their scores are missing"
    return "all answers to a prompt are equally good under its weights, or the same text"


class SignalWatch(TrainerCallback):  # type: ignore[misc]
    """Ends a run that has no signal to learn from, after its last step was saved.

    A run ends early where no pair was defined for `MAX_UNDEFINED_STEPS` steps in a row. At its
    regular end it fails if not a single pair was ever active.

    Attributes:
        failure: Why the run failed; None while it has not.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.since_log = Counts()
        self._total = Counts()
        self._undefined_in_a_row = 0
        self._said: set[str] = set()

    def add_step(self, statistics: PairStatistics, reduce: Reduce) -> None:
        """Counts one optimizer step's pairs.

        Args:
            statistics: Of this process.
            reduce: Sums a tensor over processes.
        """
        own = (statistics.labeled, statistics.active, statistics.undefined)
        labeled, active, undefined = reduce(torch.tensor([float(n) for n in own])).tolist()
        for counts in (self.since_log, self._total):
            counts.add(labeled=labeled, active=active, undefined=undefined)
        dead = undefined == labeled > 0
        self._undefined_in_a_row = self._undefined_in_a_row + 1 if dead else 0

    def pop_news(
        self, means: Mapping[str, float], objectives: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """Alarms of the steps since the last call that were not told before: each kind once."""
        counts, self.since_log = self.since_log, Counts()
        alarms = find_alarms(means, counts, objectives, max_new_tokens=max_new_tokens)
        news = [text for kind, text in alarms.items() if kind not in self._said]
        self._said |= alarms.keys()
        return news

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Begins anew."""
        self.failure = None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Saves and stops where there is nothing to learn from."""
        self.failure = self._verdict(ends=state.global_step >= state.max_steps)
        if self.failure is not None:
            self.failure += (
                f" What was trained until step {state.global_step} is in "
                f"{args.output_dir}/checkpoint-{state.global_step}."
            )
            control.should_save = control.should_training_stop = True
        return control

    def state_dict(self) -> dict[str, Any]:
        """Counts, so that a resumed run ends as the uninterrupted one."""
        return {
            "since_log": asdict(self.since_log),
            "total": asdict(self._total),
            "undefined_in_a_row": self._undefined_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restores what `state_dict` returned; None, of an older checkpoint, counts as fine."""
        if state is None:
            self._total = Counts(steps=1, labeled=1, active=1)
            return
        self.since_log, self._total = Counts(**state["since_log"]), Counts(**state["total"])
        self._undefined_in_a_row = state["undefined_in_a_row"]

    def _verdict(self, *, ends: bool) -> str | None:
        if self._undefined_in_a_row >= MAX_UNDEFINED_STEPS:
            return (
                f"No pair was defined in {self._undefined_in_a_row} steps in a row: a reward gave "
                "no scores (NaN or None), so nothing was learned. Look at the rewards."
            )
        total = self._total
        if not ends or not total.steps or total.active:
            return None
        if total.undefined == total.labeled:
            why = "a reward gave no scores (NaN or None)"
        else:
            why = _why_idle(total)
        return (
            f"Not a single pair could be trained on in {total.steps} steps: {why}. Look at the "
            "rewards, at the sampling temperature and at max_new_tokens."
        )
