"""Analysis: a sweep's answers and rewards → metrics, steerability, warnings, and a verdict.

Knows nothing of models: it fills in what a `SweepResult` leaves open, from its own numbers, so it
can be repeated on a stored `results.json`. Shapes: W weights, N prompts, K objectives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from moodpo.errors import ConfigError
from moodpo.evaluation.front import is_non_dominated
from moodpo.evaluation.guard import guard_metrics, guard_warnings
from moodpo.evaluation.results import SweepResult
from moodpo.evaluation.statistics import FRONT_METRICS, Resampling, front_metrics
from moodpo.evaluation.steerability import steerability_metrics

__all__ = [
    "MEASURES",
    "analyze",
    "check_measures",
    "check_thresholds",
    "measure_names",
    "threshold_values",
]

MIN_PROMPTS = 30  # below, a bootstrap over prompts is too sure of itself

Better = Literal["more", "less"]

MEASURES: Mapping[str, Better] = {
    "spearman_within_prompt": "more",
    "spearman_of_means": "more",
    "crd": "less",
    "hypervolume": "more",
    "mean_utility": "more",
    "expected_utility": "more",
    "maximum_utility_loss": "less",
    "sparsity": "less",
    "spread": "more",
    "utility_win_rate": "more",
}
"""The single numbers of an analyzed sweep, and whether more or less of each is better."""


def analyze(
    result: SweepResult, *, num_resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> SweepResult:
    """Fills in metrics, steerability and warnings.

    Args:
        result: A sweep.
        num_resamples: Bootstrap resamples of the prompts, shared by all intervals.
        seed: Of the resamples.
        confidence: Of the intervals, in (0, 1).

    Returns:
        The same sweep with `metrics` (see `statistics` and `guard`), `steerability` (see
        `steerability`) and further `warnings`.
    """
    resampling = Resampling.of(
        result.num_prompts, num_resamples=num_resamples, seed=seed, confidence=confidence
    )
    metrics = {**front_metrics(result, resampling), "guard": guard_metrics(result)}
    measured = replace(
        result, metrics=metrics, steerability=steerability_metrics(result, resampling)
    )
    warnings = (*result.warnings, *_few_prompts(result), *_below_reference(result))
    # A second analysis of a stored result must not say everything twice.
    return replace(measured, warnings=_unique((*warnings, *guard_warnings(measured))))


def check_thresholds(result: SweepResult, thresholds: Mapping[str, float]) -> list[str]:
    """What falls short of its minimum: a build can fail on it.

    Args:
        result: Analyzed.
        thresholds: Minimum by name; see `measure_names`.

    Returns:
        One sentence per failure, empty when all minima are met. A value that could not be
        computed fails.

    Raises:
        ConfigError: If a name is unknown or names a measure of which less is better, or if the
            result was not analyzed.
    """
    if not result.metrics:
        raise ConfigError("This sweep has no metrics yet. Pass it through analyze() first.")
    known = threshold_values(result)
    check_measures(thresholds, list(known))
    return [
        f"{name} is {_number(bounds['value'])} ({_number(bounds['low'])} to "
        f"{_number(bounds['high'])}), below the required {minimum:g}."
        for name, minimum in thresholds.items()
        for bounds in [known[name]]
        if not bounds["value"] >= minimum
    ]


def check_measures(names: Iterable[str], known: Sequence[str]) -> None:
    """Refuses names that no minimum can be set for, which needs no sweep.

    Args:
        names: Of measures.
        known: From `measure_names`.

    Raises:
        ConfigError: Naming the first.
    """
    for name in names:
        if MEASURES.get(name.removeprefix("gain_").removeprefix("baseline_")) == "less":
            raise ConfigError(f"Less is better for {name!r}: it has a maximum, not a minimum.")
        if name not in known:
            raise ConfigError(f"Unknown measure {name!r}. Choose from {', '.join(known)}.")


def measure_names(objectives: Sequence[str], *, baseline: bool) -> list[str]:
    """What a minimum can be set for in a sweep.

    Args:
        objectives: K names.
        baseline: Whether the base model is swept, too.

    Returns:
        `steerability` (the headline), `steerability/<objective>`, and all of `MEASURES` of which
        more is better: with a baseline its own front measures and the gains over them, too.
    """
    more = [name for name, better in MEASURES.items() if better == "more"]
    names = ["steerability", *(f"steerability/{name}" for name in objectives)]
    if not baseline:
        return names + [name for name in more if name != "utility_win_rate"]
    fronts = [name for name in more if name in FRONT_METRICS]
    return names + more + [f"{of}_{name}" for of in ("baseline", "gain") for name in fronts]


def threshold_values(result: SweepResult) -> dict[str, Mapping[str, float]]:
    """What `check_thresholds` can check, by name.

    Args:
        result: Analyzed.

    Returns:
        `{"value", "low", "high"}` of each of `measure_names`.
    """
    steering = result.steerability
    values: dict[str, Any] = {"steerability": steering.get("mean")}
    for name, objective in steering.get("objectives", {}).items():
        values[f"steerability/{name}"] = objective.get(steering.get("headline"))
    values |= {**steering, **result.metrics}
    names = measure_names(result.objectives, baseline=result.baseline is not None)
    return {name: values[name] for name in names if values.get(name) is not None}


def _few_prompts(result: SweepResult) -> list[str]:
    if result.num_prompts >= MIN_PROMPTS:
        return []
    return [
        f"Only {result.num_prompts} prompts: intervals from fewer than {MIN_PROMPTS} are too "
        "narrow. Evaluate on more."
    ]


def _below_reference(result: SweepResult) -> list[str]:
    points = result.normalized_points
    if not np.isfinite(points).all():
        return ["A weight vector has no score at all on some objective: no front was measured."]
    lost = is_non_dominated(points) & (points <= result.reference_point).any(axis=1)
    if not lost.any():
        return []
    return [
        f"{int(lost.sum())} of the front's points lie below the reference point on some objective "
        "and add nothing to the hypervolume. Read them before passing a lower reference point."
    ]


def _unique(warnings: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(warnings))


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3f}"
