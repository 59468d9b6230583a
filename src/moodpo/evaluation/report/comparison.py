"""A comparison as tables, a page and a picture.

Knows nothing of how anything was measured: see `moodpo.evaluation.comparison`.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moodpo.evaluation.comparison import Bounds, Comparison
from moodpo.evaluation.report.page import report_data, write_page
from moodpo.evaluation.report.plots import plot_front
from moodpo.evaluation.report.tables import (
    Column,
    Table,
    escape_markdown,
    format_intervals,
    format_number,
    markdown_table,
    rich_table,
)
from moodpo.files import write_json

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = ["difference_table", "measure_table", "terminal_comparison", "write_comparison"]

NOTE = (
    "Brackets: 95 % intervals over prompts, differences paired by prompt. An interval that "
    "excludes 0 is beyond the noise of prompts and sampling; it does not cover training, where "
    "another seed gives another policy."
)


def measure_table(comparison: Comparison) -> Table:
    """One row per policy: its measures in the shared units.

    Args:
        comparison: Of P policies.

    Returns:
        P rows.
    """
    labels = {
        "hypervolume": "hypervolume ↑",
        "mean_utility": "mean utility ↑",
        "steerability": "steerability ↑",
        "utility_win_rate": "wins against own base",
        "win_rate_against_first": f"wins against {comparison.names[0]}",
    }
    shown = [key for key in labels if any(key in row for row in comparison.measures)]
    cells = [format_intervals([row.get(key) for row in comparison.measures]) for key in shown]
    rows = tuple(zip(comparison.names, *cells, strict=True))
    reference = ", ".join(format_number(v) for v in comparison.ruler["reference_point"])
    return Table(
        title="On one ruler",
        columns=(Column("policy", numeric=False), *(Column(labels[key]) for key in shown)),
        rows=rows,
        note=f"Units and reference point ({reference}) are those of {comparison.names[0]}. "
        "Steerability: mean within-prompt rank correlation of requested weight and reward. "
        "Wins: share of prompts and weights with the higher weighted sum of rewards, ties half.",
    )


def difference_table(comparison: Comparison) -> Table:
    """One row per measure: each later policy minus the first, paired by prompt.

    Args:
        comparison: Of P policies.

    Returns:
        A column per policy but the first.
    """
    labels = {
        "hypervolume": "hypervolume ↑",
        "mean_utility": "mean utility ↑",
        "expected_utility": "expected utility ↑",
        "steerability": "steerability ↑",
        **{f"reward/{name}": f"mean {name} (std) ↑" for name in comparison.objectives},
    }
    rows = tuple(
        (label, *format_intervals([found.get(key) for found in comparison.differences]))
        for key, label in labels.items()
    )
    columns = (Column("", numeric=False), *(Column(name) for name in comparison.names[1:]))
    title = f"Difference from {comparison.names[0]}"
    return Table(title=title, columns=columns, rows=rows, note=NOTE)


def terminal_comparison(comparison: Comparison) -> tuple[RichTable, RichTable]:
    """Both tables for a terminal.

    Args:
        comparison: What to print.

    Returns:
        Measures, then differences.
    """
    return rich_table(measure_table(comparison)), rich_table(difference_table(comparison))


def write_comparison(comparison: Comparison, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Writes the comparison for machines, papers, pull requests and readers.

    Args:
        comparison: What to write.
        folder: Made if missing. `comparison.json`, `.png`, `.md` and `.html` go there.

    Returns:
        The four paths by file ending: `json`, `png`, `md`, `html`.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = {kind: target / f"comparison.{kind}" for kind in ("json", "png", "md", "html")}
    write_json(paths["json"], comparison.to_dict())
    named = list(zip(comparison.names, comparison.results, strict=True))
    plot_front(named, paths["png"])
    paths["md"].write_text(_markdown(comparison), encoding="utf-8")
    write_page(_page(comparison), paths["html"])
    return paths


# --- writing ---


def _markdown(comparison: Comparison) -> str:
    parts = [
        f"## {escape_markdown(', '.join(comparison.names))}",
        "![Fronts](comparison.png)",
        markdown_table(measure_table(comparison)),
        markdown_table(difference_table(comparison)),
    ]
    if comparison.warnings:
        listed = "\n".join(f"- {escape_markdown(text)}" for text in comparison.warnings)
        parts.append(f"### Read with care\n\n{listed}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _page(comparison: Comparison) -> dict[str, Any]:
    """The report's page with all fronts overlaid and the comparison's tables."""
    first, *others = zip(comparison.names, comparison.results, strict=True)
    data = report_data(first[1], others=others, name=first[0])
    result = first[1]
    facts = [
        {
            "label": f"Hypervolume: {name}",
            "value": format_number(measures["hypervolume"]["value"], 0.1),
            "detail": _span(measures["hypervolume"]),
        }
        for name, measures in zip(comparison.names, comparison.measures, strict=True)
    ]
    return data | {
        "kicker": "moodpo comparison",
        "title": ", ".join(comparison.names),
        "lead": f"{len(comparison.names)} policies on one ruler: {result.num_weights} weight "
        f"vectors, {result.num_prompts} prompts, differences paired by prompt. "
        f"All are compared with the first, {comparison.names[0]}.",
        "facts": facts if len(facts) <= 4 else [],
        "warnings": list(comparison.warnings),
        "comparison": {
            "note": None,
            "tables": [asdict(measure_table(comparison)), asdict(difference_table(comparison))],
        },
    }


def _span(bounds: Bounds) -> str:
    low, high = (format_number(bounds[end], 0.1) for end in ("low", "high"))
    return f"[{low}, {high}] · shared units"
