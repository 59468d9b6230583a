"""Recorder: what a run notes of itself, from one log to the next.

Metrics of training and of the evaluation in progress, sample completions, seconds, and whether
there is anything to learn from. Knows nothing of the Trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from moodpo.models.logps import CompletionLogps
from moodpo.records import PairBatch, RolloutBatch
from moodpo.rewards import RewardPanel
from moodpo.training.alarms import SignalWatch
from moodpo.training.config import MOODPOConfig
from moodpo.training.interlude import interlude
from moodpo.training.metrics import (
    MetricStore,
    PhaseClock,
    record_pairs,
    record_rollout,
    record_work,
    with_deviations,
)
from moodpo.training.observe import append_jsonl, report_samples, sample_rows
from moodpo.training.pairs import PairStatistics
from moodpo.training.parallel import Processes

__all__ = ["Recorder"]

logger = logging.getLogger(__name__)


class Recorder:
    """Keeps what is to be logged.

    Args:
        panel: All rewards; gives the objectives' names.
        processes: Whose numbers are added up.
        clock: Times the phases of a step.
        args: The settings.
    """

    def __init__(
        self, panel: RewardPanel, processes: Processes, clock: PhaseClock, args: MOODPOConfig
    ) -> None:
        self._panel, self._processes, self._clock, self._args = panel, processes, clock, args
        self.training, self._held_out = MetricStore(), MetricStore()
        self._samples: list[dict[str, Any]] = []
        self._apart = False
        self.watch = SignalWatch()

    @property
    def _store(self) -> MetricStore:
        return self._held_out if self._apart else self.training

    def note_rollout(
        self, rollout: RolloutBatch, pairs: PairBatch, statistics: PairStatistics, *, step: int
    ) -> None:
        """Notes what was sampled and what became of it; of training also whether it can teach."""
        record_rollout(self._store, rollout, pairs, statistics, self._panel.names)
        record_work(self._store, rollout, self._panel, self._clock)
        if not self._apart:
            self.watch.add_step(statistics, self._processes.reduce)
        if (limit := self._args.log_completions) and len(rollout) and not self._samples:
            names = self._panel.names
            self._samples = sample_rows(rollout, pairs, names, step=step, limit=limit)

    def note_pairs(self, pairs: PairBatch, scored: CompletionLogps) -> None:
        """Notes what the policy says of some pairs."""
        record_pairs(self._store, pairs, scored, beta=self._args.beta)

    def note_loss(self, total: Any, count: int) -> None:
        """Notes the sum of an evaluation's losses over so many pairs."""
        self._store.add("loss", total, count)

    @contextmanager
    def set_apart(self, model: nn.Module) -> Iterator[None]:
        """What happens within is an evaluation: it leaves no trace in what training logs.

        Args:
            model: The policy; its mode is kept.
        """
        outside = self._apart, self._samples
        self._apart, self._samples = True, []
        try:
            with interlude(model, self._panel, self._clock):
                yield
        finally:
            self._apart, self._samples = outside

    def start_evaluation(self) -> None:
        """Forgets the evaluation before."""
        self._held_out = MetricStore()

    def pop_evaluation(self) -> dict[str, float]:
        """Means of the evaluation, over all processes; the loss is NaN without an active pair."""
        return {"loss": float("nan"), **self._pop_means(self._held_out)}

    def pop_training(self) -> dict[str, float]:
        """Means since the last log, over all processes; warns of what they say.

        Empty during an evaluation.
        """
        if self._apart:
            return {}
        means = self._pop_means(self.training)
        limit = self._args.max_new_tokens
        for text in self.watch.pop_news(means, self._panel.names, max_new_tokens=limit):
            if self._processes.index == 0:
                logger.warning("%s", text)
        return means

    def write(self, logs: Mapping[str, float], *, step: int, callbacks: Sequence[Any]) -> None:
        """Appends a log to the run's files and shows its completions to the trackers.

        Args:
            logs: Metrics by name.
            step: The global step.
            callbacks: Of the trainer.
        """
        samples, self._samples = self._samples, []  # on every process
        if self._processes.index:
            return
        folder = Path(self._args.output_dir)
        append_jsonl(folder / "metrics.jsonl", [{"step": step, **logs}])
        if samples:
            append_jsonl(folder / "completions.jsonl", samples)
            report_samples(samples, callbacks, self._args.report_to, step)

    def _pop_means(self, store: MetricStore) -> dict[str, float]:
        store.complete(self._processes.others_names(store.names))
        return with_deviations(store.pop_means(self._processes.reduce))
