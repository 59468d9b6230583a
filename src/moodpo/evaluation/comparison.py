"""Compare: several policies on one ruler, with paired differences.

Every sweep is measured in the normalized units and against the reference point of the **first**
one: hypervolumes in different units cannot be compared. Differences are paired by prompt, which
needs the same prompts, objectives and weights; anything else is refused. Knows nothing of how a
sweep was made or of how a comparison looks. Shapes: W weight vectors, N prompts, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from moodpo.errors import ConfigError
from moodpo.evaluation.results import Baseline, SweepResult
from moodpo.evaluation.statistics import (
    FRONT_METRICS,
    Resampling,
    front_metrics,
    paired_difference,
    utility_win_rate,
)
from moodpo.evaluation.steerability import (
    mean_over_objectives,
    spearman_within_prompt,
    steerability_metrics,
)
from moodpo.files import without_non_finite

__all__ = ["SCHEMA", "VERSION", "Bounds", "Comparison", "compare"]

SCHEMA = "moodpo.comparison"
VERSION = 1

Bounds: TypeAlias = Mapping[str, float]
"""`{"value", "low", "high"}`: a number and the ends of its 95 % interval."""


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
        return dict(without_non_finite(content))


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
    differences["steerability"] = mean_over_objectives(gaps, resampling)
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
