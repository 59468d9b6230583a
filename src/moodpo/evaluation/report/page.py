"""Report: a sweep as one HTML file that needs nothing but a browser.

Decides what the page says and hands it to the page's own script as JSON; the figures are drawn
there (`assets/report.js`), in the style of `assets/report.css`. The file refers to nothing outside
itself: its content security policy forbids every request and every script but its own, whatever
the completions contain. Knows nothing of how a sweep was made. Shapes: W weight vectors, N
prompts, K objectives.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from moodpo.errors import ConfigError
from moodpo.evaluation.report.series import (
    NEUTRAL_COLOR,
    Series,
    baseline_series,
    objective_colors,
    series_colors,
    sweep_series,
    weight_colors,
)
from moodpo.evaluation.report.tables import (
    Table,
    format_interval,
    format_number,
    metrics_table,
    sensitivity_table,
    steerability_table,
    weights_table,
)
from moodpo.evaluation.results import FloatArray, SweepResult
from moodpo.files import replacing

__all__ = ["SAMPLES_BYTES", "report_data", "write_page", "write_report"]

SAMPLES_BYTES = 800_000
"""Room for samples, so that a report stays below one megabyte; beyond, prompts are skipped."""

NUMBER_BYTES = 8  # of a reward, a length or an index in the page's JSON
FACT_UNIT = 0.1  # two decimals: the headline numbers are of the order of one

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def write_report(
    result: SweepResult,
    path: str | os.PathLike[str],
    *,
    others: Sequence[tuple[str, SweepResult]] = (),
) -> Path:
    """Writes one self-contained HTML file.

    Args:
        result: Analyzed (`analysis.analyze`); what was not measured is left out.
        path: The HTML file; its folder must exist.
        others: Named sweeps of the same objectives to draw over it. Their samples can be read
            beside the result's if they answer the same prompts.

    Returns:
        The path.

    Raises:
        ConfigError: If another sweep has other objectives.
    """
    return write_page(report_data(result, others=others), path)


def report_data(
    result: SweepResult, *, others: Sequence[tuple[str, SweepResult]] = (), name: str | None = None
) -> dict[str, Any]:
    """Everything the page shows, as JSON-able values.

    Args:
        result: Analyzed.
        others: Named sweeps of the same objectives.
        name: What to call the result; its policy's name when None.

    Raises:
        ConfigError: If another sweep has other objectives.
    """
    for other_name, other in others:
        if other.objectives != result.objectives:
            raise ConfigError(
                f"Cannot show {other_name!r} over a sweep of {list(result.objectives)}: it has the "
                f"objectives {list(other.objectives)}."
            )
    runs = [(name or _policy_name(result), result), *others]
    K = len(result.objectives)
    ramp = np.linspace(1.0, 0.0, 48)
    notes, samples = _notes(result, len(runs)), _samples(runs)
    notes["samples"] += samples.pop("note")
    return {
        "kicker": "moodpo evaluation" if len(runs) == 1 else "moodpo evaluation, overlaid",
        "title": runs[0][0],
        "lead": _lead(result),
        "objectives": list(result.objectives),
        "objective_colors": objective_colors(K),
        "ramp": weight_colors(np.stack([ramp, 1 - ramp], axis=1)),
        "facts": _facts(result),
        "warnings": list(result.warnings),
        "series": _series(runs),
        "notes": notes,
        "steering_notes": _steering_notes(result) if len(runs) == 1 else [""] * K,
        "samples": samples,
        "tables": _tables(runs),
        "provenance": _provenance(runs),
        "comparison": None,
    }


def write_page(data: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Writes a page from `report_data`'s answer, so that a crash never leaves half a file.

    Args:
        data: What the page shows; NaN must be None.
        path: The HTML file; its folder must exist.

    Returns:
        The path.
    """
    style, script = _asset("report.css"), _asset("report.js")
    text = Template(_asset("report.html")).substitute(
        title=html.escape(str(data["title"])),
        style=style,
        style_hash=_csp_hash(style),
        script=script,
        script_hash=_csp_hash(script),
        data=_embedded_json(data),
    )
    with replacing(path) as temporary:
        # A lone surrogate, which no UTF-8 file can hold, becomes a question mark.
        temporary.write_bytes(text.encode("utf-8", "replace"))
    return Path(path)


def _asset(name: str) -> str:
    asset = files("moodpo.evaluation.report").joinpath("assets", name)
    return asset.read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _embedded_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element: no `<` is left to open or close anything."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


# --- what the page says ---


def _policy_name(result: SweepResult) -> str:
    return str(result.policy.get("name") or "policy")


def _lead(result: SweepResult) -> str:
    K = len(result.objectives)
    count = NUMBER_WORDS[K] if len(NUMBER_WORDS) > K else str(K)
    return (
        f"One policy, {_counted(result.num_weights, 'weight vector')} over {count} "
        f"objective{'s' if K > 1 else ''} ({_listed(result.objectives)}), "
        f"{_counted(result.num_prompts, 'prompt')}. Every prompt is answered under every weight "
        "vector with the same seed, so that answers differ by what was asked."
    )


def _facts(result: SweepResult) -> list[dict[str, str]]:
    """The headline numbers that were measured, with their intervals."""
    metrics, base = result.metrics, "the base model"
    if result.baseline is not None:
        base = result.baseline.name
    candidates = [
        ("Steerability", result.steerability.get("mean"), "rank correlation"),
        ("Hypervolume", metrics.get("hypervolume"), _beside(metrics, "hypervolume", base)),
        ("Mean utility", metrics.get("mean_utility"), _beside(metrics, "mean_utility", base)),
        ("Utility win rate", metrics.get("utility_win_rate"), f"against {base}"),
    ]
    return [
        {
            "label": label,
            "value": format_number(bounds["value"], FACT_UNIT),
            "detail": _detail(bounds, text),
        }
        for label, bounds, text in candidates
        if isinstance(bounds, Mapping) and math.isfinite(bounds.get("value", math.nan))
    ]


def _beside(metrics: Mapping[str, Any], key: str, base: str) -> str:
    bounds = metrics.get(f"baseline_{key}")
    if not isinstance(bounds, Mapping):
        return "in normalized units"
    return f"{base}: {format_number(bounds['value'], FACT_UNIT)}"


def _detail(bounds: Mapping[str, float], text: str) -> str:
    if not math.isfinite(bounds.get("low", math.nan)):
        return text
    low, high = (format_number(bounds[end], FACT_UNIT) for end in ("low", "high"))
    return f"[{low}, {high}] · {text}"


def _notes(result: SweepResult, runs: int) -> dict[str, str]:
    """What a reader must know to read each figure."""
    plane = len(result.objectives) in (2, 3)
    based = runs == 1 and result.baseline is not None
    spans = "Bars are" if plane else "Tooltips give"
    return {
        "front": _front_note(len(result.objectives), runs, based),
        "intervals": f"{spans} 95 % bootstrap intervals of the mean over "
        f"{_counted(result.num_prompts, 'prompt')}. All points share the prompts, so they move "
        "together: differences between points are surer than the intervals suggest.",
        "steering": "Mean reward against the weight that was asked for it: a steerable policy "
        f"rises.{' Dashed: the base model.' if based else ''}",
        "samples": "Two answers to one prompt. The dot places the answer's reward among all "
        "answers, the tick marks the mean at these weights.",
    }


def _front_note(K: int, runs: int, based: bool) -> str:
    if K == 2:
        text = (
            "Each point is the mean reward under one weight vector; the line follows the weights."
        )
    elif K == 3:
        text = "Each point is the mean reward under one weight vector, for each pair of objectives."
    else:
        text = (
            "Each line is one weight vector and crosses every objective's scale at its mean "
            "reward; thick lines ask for one objective alone."
        )
    if K in (2, 3):
        text += " The shaded region is what some point attains, and its dashed edge the front."
    if K == 3 and runs == 1:
        text += " The triangle shows what was asked, in the same colors."
    if runs > 1:
        text += " Colors and shapes tell the policies apart."
    return f"{text} {'Hollow' if K in (2, 3) else 'Dashed'}: the base model." if based else text


def _steering_notes(result: SweepResult) -> list[str]:
    by_objective = result.steerability.get("objectives", {})
    bounds = [
        by_objective.get(name, {}).get("spearman_within_prompt") for name in result.objectives
    ]
    return [f"ρ within prompts {format_interval(one)}" if one else "" for one in bounds]


# --- series ---


def _series(runs: Sequence[tuple[str, SweepResult]]) -> list[dict[str, Any]]:
    if len(runs) == 1:
        name, result = runs[0]
        found = [_series_data(sweep_series(result, name), "policy", None)]
        baseline = baseline_series(result)
        if baseline is not None:
            found.append(_series_data(baseline, "baseline", NEUTRAL_COLOR))
        return found
    colors = series_colors(len(runs))
    return [
        _series_data(sweep_series(result, name), "other" if index else "policy", colors[index])
        for index, (name, result) in enumerate(runs)
    ]


def _series_data(series: Series, role: str, color: str | None) -> dict[str, Any]:
    curves = [series.curve(k) for k in range(len(series.objectives))]
    return {
        "name": series.name,
        "role": role,
        "color": color,
        "colors": weight_colors(series.weights),
        "weights": _compact(series.weights),
        **{key: _compact(values) for key, values in asdict(series.points()).items()},
        "curves": [
            {"x": _compact(places), **{key: _compact(v) for key, v in asdict(estimate).items()}}
            for places, estimate in curves
        ],
    }


def _compact(values: Any) -> Any:
    """Nested lists with five significant digits; None for NaN."""
    if isinstance(values, np.ndarray):
        return _compact(values.tolist())
    if isinstance(values, list):
        return [_compact(value) for value in values]
    return float(f"{values:.5g}") if math.isfinite(values) else None


# --- samples ---


def _samples(runs: Sequence[tuple[str, SweepResult]]) -> dict[str, Any]:
    """Texts and rewards of every policy that answered the first one's prompts."""
    first = runs[0][1]
    kept = [(index, name, one) for index, (name, one) in enumerate(runs) if _same(one, first)]
    completions = [one.completions for _, _, one in kept]
    if len(runs) == 1 and first.baseline is not None:
        completions.append(first.baseline.completions)
    rows = _affordable_prompts(completions, first.num_prompts, len(first.objectives))
    texts: dict[str, int] = {}
    sources = [
        _source(name, index, one.weights, one.completions, one.rewards, rows, texts)
        | {"extra": _extras(one, rows)}
        for index, name, one in kept
    ]
    if len(runs) == 1 and (base := first.baseline) is not None:
        sources.append(
            _source(base.name, 1, first.weights, base.completions, base.rewards, rows, texts)
        )
    starts = [int(first.weights[:, 0].argmax()), int(first.weights[:, -1].argmax())]
    return {
        "prompts": [first.prompts[row] for row in rows],
        "numbers": [row + 1 for row in rows],
        "note": _omission(len(rows), first.num_prompts),
        "texts": list(texts),
        "sources": sources,
        "ranges": _ranges([one.rewards for _, _, one in kept]),
        "start": [[0, starts[0]], [0, starts[1]] if len(kept) == 1 else [1, starts[0]]],
    }


def _same(result: SweepResult, first: SweepResult) -> bool:
    return result.prompts == first.prompts


def _omission(shown: int, total: int) -> str:
    if shown == total:
        return ""
    return f" To keep this file small it holds {shown} of the {total} prompts, evenly spaced."


def _affordable_prompts(
    completions: Sequence[Sequence[Sequence[str]]], num_prompts: int, num_objectives: int
) -> list[int]:
    """Evenly spaced prompts whose samples fit into `SAMPLES_BYTES`; at least one."""
    answers = sum(len(rows) for rows in completions)  # per prompt
    numbers = NUMBER_BYTES * answers * (num_objectives + 4)
    distinct = ({row[n] for policy in completions for row in policy} for n in range(num_prompts))
    costs = np.array(
        [
            numbers + sum(len(text.encode("utf-8", "replace")) + 4 for text in texts)
            for texts in distinct
        ]
    )
    count = num_prompts
    while count > 1:
        rows = np.linspace(0, num_prompts - 1, count).round().astype(int)
        if costs[rows].sum() <= SAMPLES_BYTES:
            return [int(row) for row in rows]
        count = min(count - 1, int(count * SAMPLES_BYTES / costs[rows].sum()))
    return [0]


def _source(
    name: str,
    series: int,
    weights: FloatArray,
    completions: Sequence[Sequence[str]],
    rewards: FloatArray,
    rows: list[int],
    texts: dict[str, int],
) -> dict[str, Any]:
    """One policy's samples; texts go into a shared table, where repeats are stored once."""
    return {
        "name": name,
        "series": series,
        "weights": _compact(weights),
        "texts": [[texts.setdefault(row[n], len(texts)) for n in rows] for row in completions],
        "rewards": _compact(rewards[:, rows]),
    }


def _extras(result: SweepResult, rows: list[int]) -> list[dict[str, Any]]:
    """Further numbers per sample; `unit` is the difference worth telling apart."""
    extras = [{"name": "tokens", "unit": 10.0, "values": result.lengths[:, rows].tolist()}]
    if result.kl is not None:
        extras.append({"name": "KL", "unit": 1.0, "values": _compact(result.kl[:, rows])})
    if result.held_out is not None:
        for name, values in zip(
            result.held_out.names, np.moveaxis(result.held_out.rewards, 2, 0), strict=True
        ):
            unit = float(np.ptp(values[~np.isnan(values)]) if (~np.isnan(values)).any() else 0) / 20
            extras.append({"name": name, "unit": unit or None, "values": _compact(values[:, rows])})
    return extras


def _ranges(rewards: Sequence[FloatArray]) -> list[list[float]]:
    """Lowest and highest reward per objective over all samples, never equal."""
    flat = np.concatenate([values.reshape(-1, values.shape[-1]) for values in rewards])
    ranges = []
    for column in flat.T:
        known = column[~np.isnan(column)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        ranges.append([low, high] if high > low else [low - 0.5, high + 0.5])
    return ranges


# --- tables and the record of the run ---


def _tables(runs: Sequence[tuple[str, SweepResult]]) -> list[dict[str, Any]]:
    if len(runs) > 1:
        return [_weights_data(result, f"By weight: {name}") for name, result in runs]
    result = runs[0][1]
    measured = (metrics_table(result), steerability_table(result), sensitivity_table(result))
    tables = [asdict(table) for table in measured if table is not None]
    return [*tables, _weights_data(result, "By weight")]


def _weights_data(result: SweepResult, title: str) -> dict[str, Any]:
    table: Table = weights_table(result)
    return {**asdict(table), "title": title, "swatches": weight_colors(result.weights)}


def _provenance(runs: Sequence[tuple[str, SweepResult]]) -> list[dict[str, Any]]:
    result = runs[0][1]
    records = [_policy_record(name, one, len(runs)) for name, one in runs]
    records += [
        _record("Data", result.data),
        _record("Sampling", {**result.sampling, "seeds": _seeds(result.seeds)}),
        _record("Units", _units(result)),
        _record("Seconds", {key: format_number(value) for key, value in result.timings.items()}),
        _record("Versions", result.versions),
    ]
    return [record for record in records if record["rows"]]


def _policy_record(name: str, result: SweepResult, runs: int) -> dict[str, Any]:
    title = "Policy" if runs == 1 else f"Policy: {name}"
    details = {key: value for key, value in result.policy.items() if key != "lineage"}
    record = _record(title, details)
    lineage = result.policy.get("lineage")
    steps = lineage if isinstance(lineage, list | tuple) else [lineage] if lineage else []
    for number, step in enumerate(steps, start=1):
        record["rows"].append([f"lineage {number}", _plain(step)])
    return record


def _units(result: SweepResult) -> dict[str, str]:
    scale = zip(result.objectives, result.normalization.mean, result.normalization.std, strict=True)
    return {
        "normalized by": result.normalization.source,
        **{
            name: f"mean {format_number(mean)}, std {format_number(std)}"
            for name, mean, std in scale
        },
        "reference point": ", ".join(format_number(value) for value in result.reference_point),
    }


def _seeds(seeds: Sequence[int]) -> str:
    shown = ", ".join(str(seed) for seed in seeds[:3])
    return f"{shown}{', …' if len(seeds) > 3 else ''} ({len(seeds)}, one per prompt)"


def _record(title: str, content: Mapping[str, Any]) -> dict[str, Any]:
    rows = [[str(key), _plain(value)] for key, value in content.items()]
    return {"title": title, "rows": rows}


def _plain(value: Any) -> str:
    """Any JSON value as text for a reader."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return "–" if value is None else str(value)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
