"""Tables: a sweep's numbers as text, once, for the terminal, Markdown and the HTML report.

Decides which numbers are shown, in which order and with how many digits; measures nothing and
knows nothing of where they are printed. Shapes: W weight vectors, K objectives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moodpo.evaluation.report.series import sweep_series

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from moodpo.evaluation.results import FloatArray, SweepResult

__all__ = [
    "Column",
    "Table",
    "escape_markdown",
    "format_interval",
    "format_intervals",
    "format_number",
    "markdown_table",
    "metrics_table",
    "rich_table",
    "sensitivity_table",
    "steerability_table",
    "terminal_table",
    "weights_table",
]

NONE = "–"

FRONT_MEASURES = {
    "hypervolume": "hypervolume ↑",
    "mean_utility": "mean utility ↑",
    "expected_utility": "expected utility ↑",
    "maximum_utility_loss": "maximum utility loss ↓",
    "sparsity": "sparsity ↓",
    "spread": "spread ↑",
}
STEERING_MEASURES = {
    "spearman_within_prompt": "ρ within prompts",
    "spearman_of_means": "ρ of means",
    "corner_gap": "corner gap",
    "effect_size": "effect size (std)",
    "corner_win_rate": "corner win rate",
}
GUARD_MEASURES = {
    "length": "tokens",
    "truncated_rate": "cut",
    "distinct_2": "distinct\u20112",  # the hyphen does not break
    "duplicate_rate": "duplicates",
    "empty_rate": "empty",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading and whether its cells are numbers (aligned right)."""

    label: str
    numeric: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells ready to print."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def metrics_table(result: SweepResult) -> Table | None:
    """The measures of the front, beside the base model's where there is one.

    Args:
        result: Analyzed.

    Returns:
        One row per measure; None if nothing was measured.
    """
    metrics = result.metrics
    columns = [Column("", numeric=False), Column("policy")]
    prefixes = [""]
    if result.baseline is not None:
        columns += [Column(result.baseline.name), Column("difference")]
        prefixes += ["baseline_", "gain_"]
    rows = [
        (label, *(format_interval(metrics.get(prefix + key)) for prefix in prefixes))
        for key, label in FRONT_MEASURES.items()
        if key in metrics
    ]
    rows += _overall_rows(result, len(prefixes))
    if not rows:
        return None
    confidence = metrics.get("confidence", 0.95)
    note = (
        "Normalized units: (raw − mean) / std. Hypervolume lies above the reference point "
        f"({', '.join(format_number(value) for value in result.reference_point)}). "
        f"Brackets: {confidence:.0%} intervals over prompts. Arrows: the better direction."
    )
    return Table(title="Front", columns=tuple(columns), rows=tuple(rows), note=note)


def steerability_table(result: SweepResult) -> Table | None:
    """How each objective answers to its own weight.

    Args:
        result: Analyzed.

    Returns:
        One row per objective and one for their mean; None if nothing was measured.
    """
    by_objective = result.steerability.get("objectives")
    if not by_objective:
        return None
    labels = [*STEERING_MEASURES.values(), "falls beyond noise", "dead zone"]
    cells = [
        list(by_objective),
        *(
            format_intervals([one.get(key) for one in by_objective.values()])
            for key in STEERING_MEASURES
        ),
        [_percent(one.get("violations_beyond_noise")) for one in by_objective.values()],
        [_dead_zone(one.get("dead_zone")) for one in by_objective.values()],
    ]
    rows = list(zip(*cells, strict=True))
    mean = (format_interval(result.steerability.get(key)) for key in list(STEERING_MEASURES)[:2])
    rows.append(("mean", *mean, *[""] * (len(labels) - 2)))
    note = (
        "ρ: Spearman's correlation of requested weight and reward, within each prompt (the "
        "headline) or of the mean rewards. Corner gap: raw reward at the objective's own end of "
        "the sweep minus at the others'. Dead zone: the longest stretch of weight without a rise "
        "beyond noise."
    )
    columns = (Column("objective", numeric=False), *(Column(label) for label in labels))
    return Table(title="Steerability", columns=columns, rows=tuple(rows), note=note)


def sensitivity_table(result: SweepResult) -> Table | None:
    """How much the answers depend on how the same weights were written.

    Args:
        result: A sweep with `steerability["sensitivity"]`.

    Returns:
        One row per way of writing; None if none was measured.
    """
    measured = result.steerability.get("sensitivity")
    if not measured:
        return None
    keys = ("mean_difference", "expected_from_noise", "rank_agreement")
    rows = [
        (name, *(format_number(report["mean"][key], 0.01) for key in keys))
        for name, report in measured.items()
    ]
    labels = ("difference (std)", "expected from noise", "rank agreement")
    return Table(
        title="Sensitivity to how weights are written",
        columns=(Column("written as", numeric=False), *(Column(label) for label in labels)),
        rows=tuple(rows),
        note="Difference of mean rewards from the usual way, in standard deviations, beside what "
        "sampling noise alone would give. Reordered: objectives named the other way round. "
        "Forged: every prompt ends with an instruction for the opposite weights.",
    )


def weights_table(result: SweepResult) -> Table:
    """Everything that varies with the weights: one row per weight vector.

    Args:
        result: A sweep; win rates and answer statistics appear if it was analyzed.

    Returns:
        W rows.
    """
    columns = [Column("weights", numeric=False)]
    cells = [[format_weights(weights) for weights in result.weights]]
    estimate = sweep_series(result).points()
    for k, name in enumerate(result.objectives):
        columns.append(Column(name))
        spans = zip(estimate.mean[:, k], estimate.low[:, k], estimate.high[:, k], strict=True)
        unit = _typical(estimate.high[:, k] - estimate.low[:, k])
        cells.append([_bounds(*span, unit) for span in spans])
    for label, values in _weight_extras(result):
        columns.append(Column(label))
        cells.append(values)
    note = f"Weights in the order {', '.join(result.objectives)}. Rewards are means over prompts."
    return Table(
        title="By weight",
        columns=tuple(columns),
        rows=tuple(zip(*cells, strict=True)),
        note=note,
    )


def terminal_table(result: SweepResult) -> RichTable:
    """The sweep at a glance, for a terminal.

    Args:
        result: Analyzed, or not: what is missing is left out.

    Returns:
        One row per weight vector with mean rewards ± half the 95 % interval, the win rate of the
        weighted sum, length and KL where known; the headline numbers in the caption.
    """
    estimate = sweep_series(result).points()
    columns = [Column("weights", numeric=False)]
    cells = [[format_weights(weights) for weights in result.weights]]
    for k, name in enumerate(result.objectives):
        columns.append(Column(name))
        widths = estimate.high[:, k] - estimate.low[:, k]
        pairs = zip(estimate.mean[:, k], widths / 2, strict=True)
        unit = _typical(widths)
        cells.append([_plus_minus(*pair, unit) for pair in pairs])
    kept = ("win", "tokens", "KL (nats)")
    for label, values in _weight_extras(result):
        if label.startswith(kept):
            columns.append(Column(label))
            cells.append(values)
    name = str(result.policy.get("name") or "policy")
    title = f"{name}: {result.num_weights} weight vectors × {result.num_prompts} prompts"
    rows = tuple(zip(*cells, strict=True))
    table = Table(title=title, columns=tuple(columns), rows=rows, note=_headline(result))
    return rich_table(table)


def rich_table(table: Table) -> RichTable:
    """The table for a terminal; names are printed as they are, never as markup.

    Args:
        table: Any.
    """
    from rich import box
    from rich.table import Table as Rich
    from rich.text import Text

    rich = Rich(
        title=Text(table.title, style="bold"),
        caption=Text(table.note) if table.note else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for column in table.columns:
        rich.add_column(Text(column.label), justify="right" if column.numeric else "left")
    for row in table.rows:
        rich.add_row(*(Text(cell) for cell in row))
    return rich


def markdown_table(table: Table) -> str:
    """The table in GitHub's Markdown, title and note included.

    Args:
        table: Any.
    """
    heads = [escape_markdown(column.label) for column in table.columns]
    rules = ["---:" if column.numeric else "---" for column in table.columns]
    body = [[escape_markdown(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in [heads, rules, *body]]
    note = [escape_markdown(table.note), ""] if table.note else []
    return "\n".join([f"### {escape_markdown(table.title)}", "", *lines, "", *note])


def escape_markdown(text: str) -> str:
    """Text on one line that Markdown prints as it is: no cell ends, no HTML, no links.

    Args:
        text: Any.
    """
    for character in "\\|<>[]*_`":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def format_number(value: float | None, unit: float | None = None) -> str:
    """A number with two significant digits of a unit, and four of its own at most.

    Args:
        value: NaN and None become a dash.
        unit: What differences are worth telling apart, e.g. an interval's width; the value's own
            size when None.
    """
    if value is None or not math.isfinite(value):
        return NONE
    scale = unit if unit is not None and math.isfinite(unit) and unit > 0 else abs(value)
    wanted = 2 if scale == 0 else 1 - math.floor(math.log10(scale))
    sensible = 6 if value == 0 else 3 - math.floor(math.log10(abs(value)))  # four digits at most
    decimals = min(6, max(0, min(wanted, sensible)))
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def format_interval(bounds: Any) -> str:
    """`value [low, high]` with as many digits as the interval allows.

    Args:
        bounds: `{"value", "low", "high"}`; anything else becomes a dash.
    """
    if not isinstance(bounds, Mapping):
        return NONE
    return _bounds(*_ends(bounds))


def format_intervals(column: Sequence[Any]) -> list[str]:
    """Several `value [low, high]` with the same digits, to stand in one column or row.

    Args:
        column: Each `{"value", "low", "high"}`; anything else becomes a dash.
    """
    ends = [_ends(bounds) if isinstance(bounds, Mapping) else None for bounds in column]
    unit = _typical(np.array([one[2] - one[1] for one in ends if one is not None]))
    return [NONE if one is None else _bounds(*one, unit) for one in ends]


def format_weights(weights: Sequence[float] | FloatArray) -> str:
    """A weight vector as `0.75 / 0.25`.

    Args:
        weights: `[K]`.
    """
    return " / ".join(f"{weight:.2f}" for weight in weights)


def _ends(bounds: Mapping[str, float]) -> tuple[float, float, float]:
    value, low, high = (bounds.get(key, math.nan) for key in ("value", "low", "high"))
    return value, low, high


def _bounds(value: float, low: float, high: float, unit: float | None = None) -> str:
    if not math.isfinite(low) or not math.isfinite(high):
        return format_number(value, unit)
    digits = high - low if unit is None else unit
    number = format_number(value, digits)
    return f"{number} [{format_number(low, digits)}, {format_number(high, digits)}]"


def _plus_minus(value: float, half: float, unit: float | None) -> str:
    if not math.isfinite(half):
        return format_number(value, unit)
    return f"{format_number(value, unit)} ± {format_number(half, unit)}"


def _typical(widths: FloatArray) -> float | None:
    """The median width of a column's intervals: one number of digits for the whole column."""
    known = widths[np.isfinite(widths) & (widths > 0)]
    return float(np.median(known)) if known.size else None


def _overall_rows(result: SweepResult, width: int) -> list[tuple[str, ...]]:
    """Win rate and held-out rewards, which are not measures of the front."""
    metrics, rows = result.metrics, []
    if "utility_win_rate" in metrics:
        win_rate = format_interval(metrics["utility_win_rate"])
        rows.append(("utility win rate ↑", win_rate, *[""] * (width - 1)))
    gains = metrics.get("gain_held_out", {})
    for name, bounds in metrics.get("held_out", {}).items():
        gain = [NONE, format_interval(gains.get(name))] if width > 1 else []
        rows.append((f"held out: {name} (raw) ↑", format_interval(bounds), *gain))
    return rows


def _weight_extras(result: SweepResult) -> list[tuple[str, list[str]]]:
    """Columns beside the rewards: (label, W cells)."""
    extras = []
    wins = result.metrics.get("win_rate")
    if wins:
        extras = [
            (f"win rate: {name}", [_percent(row[k].get("value")) for row in wins])
            for k, name in enumerate(result.objectives)
        ]
    guard = result.metrics.get("guard") or {"length": result.lengths.mean(axis=1).tolist()}
    extras += [
        (label, [_guard_number(key, value) for value in guard[key]])
        for key, label in GUARD_MEASURES.items()
        if key in guard
    ]
    if result.kl is not None:
        extras.append(("KL (nats)", _mean_cells(result.kl)))
    if result.held_out is not None:
        columns = np.moveaxis(result.held_out.rewards, 2, 0)  # [H, W, N]
        for name, column in zip(result.held_out.names, columns, strict=True):
            extras.append((f"held out: {name}", _mean_cells(column)))
    return extras


def _mean_cells(values: FloatArray) -> list[str]:
    """Means over prompts `[W, N] -> W`, without the missing values, with equal digits."""
    present = [row[~np.isnan(row)] for row in values]
    means = [float(row.mean()) if row.size else math.nan for row in present]
    errors = [row.std() / math.sqrt(row.size) for row in present if row.size]
    unit = 4 * float(np.median(errors)) if errors else None  # about the width of an interval
    return [format_number(mean, unit) for mean in means]


def _guard_number(key: str, value: float) -> str:
    if key.endswith("_rate"):
        return _percent(value)
    return format_number(value, 0.1 if key.startswith("distinct") else 1.0)


def _percent(share: float | None) -> str:
    return NONE if share is None or not math.isfinite(share) else f"{share:.0%}"


def _dead_zone(zone: Mapping[str, float] | None) -> str:
    if not zone or not math.isfinite(zone.get("share", math.nan)):
        return NONE
    if not zone["share"]:
        return "none"
    return f"{zone['from']:.2f} to {zone['to']:.2f}"


def _headline(result: SweepResult) -> str:
    parts = [
        ("hypervolume", result.metrics.get("hypervolume")),
        ("steerability", result.steerability.get("mean")),
        ("utility win rate", result.metrics.get("utility_win_rate")),
    ]
    shown = [f"{label} {format_interval(bounds)}" for label, bounds in parts if bounds]
    return " · ".join(shown)
