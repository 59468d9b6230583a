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
from transformers import ProgressCallback, TrainerCallback

from moodpo.files import json_line
from moodpo.models.logps import CompletionLogps
from moodpo.records import PairBatch, RolloutBatch, prompt_text
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
from moodpo.training.pairs import PairStatistics
from moodpo.training.parallel import Processes

Row = dict[str, Any]

__all__ = [
    "PhaseProgress",
    "Recorder",
    "append_jsonl",
    "report_samples",
    "sample_rows",
    "show_phase",
]

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
        self._panel, self._processes, self.clock, self._args = panel, processes, clock, args
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
        record_work(self._store, rollout, self._panel, self.clock)
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
            with interlude(model, self._panel, self.clock):
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


class PhaseProgress(ProgressCallback):  # type: ignore[misc]
    """The Trainer's progress bar, with the phase that a step is in."""

    def show(self, phase: str) -> None:
        """Names the phase behind the bar."""
        if self.training_bar is not None:
            self.training_bar.set_postfix_str(phase)


def show_phase(callbacks: Sequence[TrainerCallback], phase: str) -> None:
    """Names the phase behind the bar, where there is one."""
    for callback in callbacks:
        if isinstance(callback, PhaseProgress):
            callback.show(phase)


def sample_rows(
    rollout: RolloutBatch, pairs: PairBatch, objectives: Sequence[str], *, step: int, limit: int
) -> list[Row]:
    """The first rows of a rollout for a table: weights, completions, rewards, what is trained.

    Args:
        rollout: B prompts under M weight vectors each.
        pairs: What is trained of them.
        objectives: K names.
        step: The global step.
        limit: How many rows at most; the M rows of a prompt stand next to each other.

    Returns:
        One row per prompt and weight vector that it was sampled under. It holds all completions
        of the prompt, for all compete under each of its weights (`sampled` are the numbers of
        those that were sampled under the row's own), and the numbers of the `chosen` and the
        `rejected` one: None where no pair is trained under these weights.
    """
    _, M, size, _ = rollout.rewards.shape
    trained = {
        (prompt, labeling): tuple(candidates)
        for prompt, labeling, candidates in zip(
            pairs.rows.tolist(), pairs.labelings.tolist(), pairs.candidates.tolist(), strict=True
        )
    }
    rows: list[Row] = []
    for i in range(min(limit, len(rollout) * M)):
        prompt, labeling = divmod(i, M)
        weights = rollout.labels[prompt, labeling]
        row: Row = {"step": step, "prompt": prompt_text(rollout.prompts[prompt])}
        row |= {f"weight/{n}": round(w, 3) for n, w in _named(objectives, weights)}
        for j in range(M * size):
            m, place = divmod(j, size)
            row[f"completion_{j}"] = rollout.texts[prompt][m][place]
            row |= {
                f"{n}_{j}": round(r, 4) if r == r else None
                for n, r in _named(objectives, rollout.rewards[prompt, m, place])
            }
        row["sampled"] = ", ".join(str(labeling * size + j) for j in range(size))
        row["chosen"], row["rejected"] = trained.get((prompt, labeling), (None, None))
        rows.append(row)
    return rows


def report_samples(
    rows: Sequence[Row], callbacks: Sequence[TrainerCallback], report_to: Sequence[str], step: int
) -> None:
    """Writes sample completions as a table to every tracker of the run.

    Args:
        rows: From `sample_rows`.
        callbacks: The trainer's callbacks: TensorBoard's writer is found among them.
        report_to: Names of trackers.
        step: The global step.
    """
    columns = list(rows[0])
    cells = [[row[c] for c in columns] for row in rows]
    if "wandb" in report_to:
        import wandb

        if wandb.run is not None:
            table = wandb.Table(columns=columns, data=cells)
            wandb.log({"completions": table}, step=None, commit=False)
    if "trackio" in report_to:
        import pandas
        import trackio

        trackio.log({"completions": trackio.Table(dataframe=pandas.DataFrame(rows))})
    if "tensorboard" in report_to:
        for callback in callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                writer.add_text("completions", _markdown(columns, cells), step)


def append_jsonl(path: Path, rows: Sequence[Row]) -> None:
    """Appends rows to a JSONL file; NaN and infinities become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.writelines(json_line(row) + "\n" for row in rows)


def _named(objectives: Sequence[str], values: Any) -> list[tuple[str, float]]:
    return list(zip(objectives, values.tolist(), strict=True))


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    def line(values: Sequence[Any]) -> str:
        texts = (str(v).replace("|", "\\|").replace("\n", " ") for v in values)
        return "| " + " | ".join(texts) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, cells)])
