"""What a person sees of a run: the progress bar's phase, sample completions, a clean interrupt."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from moodpo.files import json_line
from moodpo.records import PairBatch, RolloutBatch, prompt_text

__all__ = [
    "InterruptCallback",
    "PhaseProgress",
    "append_jsonl",
    "report_samples",
    "sample_rows",
    "show_phase",
]

Row = dict[str, Any]


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


class InterruptCallback(TrainerCallback):  # type: ignore[misc]
    """Turns the first Ctrl-C or SIGTERM into: finish this step, save a checkpoint, stop.

    A second one interrupts at once. Stopping between steps is what makes the checkpoint exact.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Starts listening."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Saves and stops if a signal came during the step."""
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stops listening."""
        self._restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


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
