"""Outputs of a sweep: files for machines and readers, tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moodpo.cli.console import is_main_process, print_out, print_table, warn
from moodpo.evaluation.report.page import write_report
from moodpo.evaluation.report.plots import plot_front
from moodpo.evaluation.report.tables import (
    Column,
    Table,
    format_interval,
    format_number,
    format_weights,
    rich_table,
    sensitivity_table,
    terminal_table,
)

if TYPE_CHECKING:
    from moodpo.evaluation.results import SweepResult
    from moodpo.evaluation.sweep import SweepProgress

__all__ = [
    "change_table",
    "list_files",
    "show_change",
    "show_sweep",
    "steering_table",
    "sweep_progress",
    "write_sweep",
]

RESULTS, FRONT, REPORT = "results.json", "front.png", "report.html"


def write_sweep(result: SweepResult, folder: Path) -> None:
    """Writes `results.json`, `front.png` and `report.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    result.save(folder / RESULTS)
    plot_front(result, folder / FRONT)
    write_report(result, folder / REPORT)


def show_sweep(result: SweepResult) -> None:
    """Prints what the weights do, and what a reader must be warned of."""
    print_table(terminal_table(result))
    print_table(rich_table(steering_table(result)))
    if (sensitivity := sensitivity_table(result)) is not None:
        print_table(rich_table(sensitivity))
    for text in result.warnings:
        warn(text)


def show_change(result: SweepResult) -> None:
    """Prints the same weights before and after training, then what the weights do now."""
    print_table(rich_table(change_table(result)))
    print_table(rich_table(steering_table(result)))
    for text in result.warnings:
        warn(text)


def change_table(result: SweepResult) -> Table:
    """Mean raw rewards of the base model and of the policy under each weight vector: W rows."""
    before, after = result.baseline_points, result.points
    columns = [Column("weights", numeric=False)]
    cells = [[format_weights(weights) for weights in result.weights]]
    for k, name in enumerate(result.objectives):
        columns.append(Column(name))
        unit = float(np.nanstd(result.rewards[:, :, k])) / 2 or None
        old = [format_number(v, unit) for v in before[:, k]] if before is not None else []
        new = [format_number(v, unit) for v in after[:, k]]
        cells.append([" → ".join(pair) for pair in zip(old, new, strict=True)] if old else new)
    return Table(
        title=f"Mean rewards before → after, {result.num_prompts} held-out prompts",
        columns=tuple(columns),
        rows=tuple(zip(*cells, strict=True)),
        note=f"Weights in the order {', '.join(result.objectives)}; both under the same "
        "instruction.",
    )


def steering_table(result: SweepResult) -> Table:
    """What each objective gains from asking for it: its own corner against the others': K rows."""
    ends = result.weights.argmax(axis=0)  # [K]
    points = result.points
    rows = []
    for k, name in enumerate(result.objectives):
        others = [end for end in ends if end != ends[k]]
        unit = float(np.nanstd(result.rewards[:, :, k])) / 2 or None
        elsewhere = float(points[others, k].mean()) if others else float("nan")
        gap = result.steerability.get("objectives", {}).get(name, {}).get("corner_gap")
        own = format_number(float(points[ends[k], k]), unit)
        rows.append((name, own, format_number(elsewhere, unit), format_interval(gap)))
    headings = ("own corner", "other corners", "gap [95 %]")
    return Table(
        title="What the weights do",
        columns=(Column("objective", numeric=False), *(Column(h) for h in headings)),
        rows=tuple(rows),
        note="Mean raw reward where the objective has the largest weight, and where others have. "
        "A gap whose interval excludes 0 is steering.",
    )


@contextmanager
def sweep_progress() -> Iterator[Callable[[SweepProgress], None]]:
    """Within it, the yielded function shows a sweep's progress on a terminal."""
    import sys

    from rich.console import Console
    from rich.progress import Progress

    visible = is_main_process() and sys.stderr.isatty()
    with Progress(console=Console(stderr=True), disable=not visible, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: SweepProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bars.add_task(progress.phase, total=progress.total)
            bars.update(tasks[progress.phase], completed=progress.done)

        yield show


def list_files(folder: Path, names: Sequence[str] = (RESULTS, FRONT, REPORT)) -> None:
    """Says where the files are."""
    print_out("\n".join(str(folder / name) for name in names))
