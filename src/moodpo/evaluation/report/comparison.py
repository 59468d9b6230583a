"""Compare: several policies on one ruler, with paired differences.

Every sweep is measured in the normalized units and against the reference point of the **first**
one: hypervolumes in different units cannot be compared. Differences are paired by prompt, which
needs the same prompts, objectives and weights; anything else is refused. Knows nothing of how a
sweep was made. Shapes: W weight vectors, N prompts, K objectives.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from moodpo.errors import ConfigError
from moodpo.evaluation.bootstrap import interval, resampled_means
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
from moodpo.evaluation.results import Baseline, SweepResult
from moodpo.evaluation.statistics import (
    FRONT_METRICS,
    Resampling,
    front_metrics,
    paired_difference,
    utility_win_rate,
)
from moodpo.evaluation.steerability import spearman_within_prompt, steerability_metrics
from moodpo.files import write_json

if TYPE_CHECKING:
    from rich.table import Table as RichTable

__all__ = [
    "SCHEMA",
    "VERSION",
    "Comparison",
    "compare",
    "difference_table",
    "measure_table",
    "terminal_comparison",
    "write_comparison",
]

SCHEMA = "moodpo.comparison"
VERSION = 1

Bounds: TypeAlias = Mapping[str, float]
"""`{"value", "low", "high"}`: a number and the ends of its 95 % interval."""

NOTE = (
    "Brackets: 95 % intervals over prompts, differences paired by prompt. An interval that "
    "excludes 0 is beyond the noise of prompts and sampling; it does not cover training, where "
    "another seed gives another policy."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """What `compare` found; the first policy is what the others are compared with.

    Attributes:
        names: The policies, the first one first.
        results: Their sweeps, as they were given.
        measures: Per policy: the measures of the front, `steerability`, `utility_win_rate`
            against its own base model, `win_rate_against_first`, each `Bounds`.
        differences: Per policy but the first: policy minus first, paired by prompt, of the
            measures of the front, `steerability` and `reward/<objective>` in standard deviations.
        ruler: The units and reference point that all measures share, and whose they are.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
        warnings: What a reader must know before believing the table.
    """

    names: tuple[str, ...]
    results: tuple[SweepResult, ...]
    measures: tuple[Mapping[str, Bounds], ...]
    differences: tuple[Mapping[str, Bounds], ...]
    ruler: Mapping[str, Any]
    seed: int
    num_resamples: int
    warnings: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[str, ...]:
        """The K objectives that all policies share."""
        return self.results[0].objectives

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-able values; NaN becomes None."""
        first, *rest = self.names
        content = {
            "schema": SCHEMA,
            "version": VERSION,
            "objectives": list(self.objectives),
            "first": first,
            "policies": [
                {"name": name, "policy": dict(result.policy), "measures": dict(measures)}
                for name, result, measures in zip(
                    self.names, self.results, self.measures, strict=True
                )
            ],
            "differences": dict(zip(rest, map(dict, self.differences), strict=True)),
            "ruler": dict(self.ruler),
            "bootstrap": {"seed": self.seed, "num_resamples": self.num_resamples},
            "warnings": list(self.warnings),
        }
        return dict(_jsonable(content))


def compare(
    results: Sequence[tuple[str, SweepResult]], *, seed: int = 0, num_resamples: int = 1000
) -> Comparison:
    """Measures several sweeps on one ruler and pairs each with the first.

    Args:
        results: Names and sweeps, at least two; the first is what the others are compared with,
            and gives the normalized units and the reference point.
        seed: Of the bootstrap over prompts, at least 0.
        num_resamples: How many.

    Returns:
        Measures, paired differences and the ruler they share.

    Raises:
        ConfigError: If fewer than two sweeps are given, two have one name, or they differ in
            objectives, prompts or weights, so that they cannot be paired.
    """
    _check(results)
    names = tuple(name for name, _ in results)
    first = results[0][1]
    resampling = Resampling.of(first.num_prompts, num_resamples=num_resamples, seed=seed)
    ruled = [_on_ruler(result, first) for _, result in results]
    differences = tuple(
        _differences(result, ruled[0], resampling, num_resamples=num_resamples, seed=seed)
        for result in ruled[1:]
    )
    return Comparison(
        names=names,
        results=tuple(result for _, result in results),
        measures=tuple(_measures(result, ruled[0], resampling) for result in ruled),
        differences=differences,
        ruler={
            "from": names[0],
            "normalization": {
                "mean": first.normalization.mean.tolist(),
                "std": first.normalization.std.tolist(),
                "source": first.normalization.source,
            },
            "reference_point": first.reference_point.tolist(),
        },
        seed=seed,
        num_resamples=num_resamples,
        warnings=_warnings(results),
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


# --- measuring ---


def _on_ruler(result: SweepResult, first: SweepResult) -> SweepResult:
    """The same answers in the first sweep's units, against its reference point."""
    return replace(result, normalization=first.normalization, reference_point=first.reference_point)


def _measures(result: SweepResult, first: SweepResult, resampling: Resampling) -> dict[str, Bounds]:
    metrics = front_metrics(result, resampling)
    kept = [*FRONT_METRICS, "utility_win_rate"]
    measures = {key: metrics[key] for key in kept if key in metrics}
    measures["steerability"] = steerability_metrics(result, resampling)["mean"]
    if result is not first:
        opponent = Baseline(name="first", rewards=first.rewards, completions=first.completions)
        duel = replace(result, baseline=opponent)
        measures["win_rate_against_first"] = utility_win_rate(duel, resampling)
    return measures


def _differences(
    result: SweepResult,
    first: SweepResult,
    resampling: Resampling,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Bounds]:
    differences: dict[str, Bounds] = dict(
        paired_difference(result, first, num_resamples=num_resamples, seed=seed)
    )
    # The headline of `steerability`, prompt by prompt: mean over prompts, then over objectives.
    gaps = spearman_within_prompt(result.weights, result.rewards) - spearman_within_prompt(
        first.weights, first.rewards
    )  # [N, K]
    everyone = np.ones((1, len(gaps)))
    value = float(resampled_means(gaps.T, everyone)[0].mean())
    replicates = resampled_means(gaps.T, resampling.counts).mean(axis=-1)  # [R]
    differences["steerability"] = interval(value, replicates, confidence=resampling.confidence)
    return differences


# --- refusing ---


def _check(results: Sequence[tuple[str, SweepResult]]) -> None:
    if len(results) < 2:
        raise ConfigError(
            f"A comparison needs at least two results; got {len(results)}. Pass the results.json "
            "of each policy."
        )
    names = [name for name, _ in results]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"Two results are called {repeated[0]!r}. Give every policy a name of its own."
        )
    for name, result in results[1:]:
        _check_pair(*results[0], name, result)


def _check_pair(first_name: str, first: SweepResult, name: str, result: SweepResult) -> None:
    if result.objectives != first.objectives:
        raise ConfigError(
            f"{name!r} has the objectives {list(result.objectives)}, but {first_name!r} has "
            f"{list(first.objectives)}. Evaluate both with the same rewards in the same order."
        )
    if result.prompts != first.prompts:
        raise ConfigError(
            f"{name!r} and {first_name!r} were evaluated on different prompts: pairing is "
            f"impossible ({_prompt_difference(result.prompts, first.prompts)}). Evaluate both on "
            "one file of prompts, in one order."
        )
    same_shape = result.weights.shape == first.weights.shape
    if not same_shape or not np.allclose(result.weights, first.weights, atol=1e-6):
        raise ConfigError(
            f"{name!r} was evaluated at other weights than {first_name!r} ({result.num_weights} "
            f"and {first.num_weights} vectors): pairing is impossible. Evaluate both with one "
            "--weights."
        )


def _prompt_difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} prompts"
    if sorted(ours) == sorted(theirs):
        return "the same prompts in another order"
    row = next(n for n, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"first at prompt {row + 1}: {ours[row][:60]!r} and {theirs[row][:60]!r}"


def _warnings(results: Sequence[tuple[str, SweepResult]]) -> tuple[str, ...]:
    """The policies' own warnings under their names, and what the comparison adds to them."""
    first_name, first = results[0]
    warnings = [f"{name}: {text}" for name, result in results for text in result.warnings]
    for name, result in results[1:]:
        if dict(result.sampling) != dict(first.sampling):
            changed = _changed(result, first)
            warnings.append(f"{name} was sampled with other settings than {first_name}: {changed}.")
        if result.seeds != first.seeds:
            warnings.append(
                f"{name} was sampled with other seeds than {first_name}: the prompts are paired, "
                "the luck of sampling is not."
            )
    return tuple(warnings)


def _changed(result: SweepResult, first: SweepResult) -> str:
    keys = sorted({*result.sampling, *first.sampling})
    pairs = [(key, result.sampling.get(key), first.sampling.get(key)) for key in keys]
    return ", ".join(f"{key} {ours} and {theirs}" for key, ours, theirs in pairs if ours != theirs)


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


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
