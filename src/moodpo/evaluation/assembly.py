"""Assembly: the journal of a sweep → its results, with the units they are measured in.

Knows nothing of models. Shapes: W weights, N prompts, K objectives, H held-out rewards.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moodpo.evaluation.front import (
    REFERENCE_MARGIN,
    default_reference_point,
    normalize_points,
    reward_statistics,
)
from moodpo.evaluation.journal import SweepJournal, fingerprint
from moodpo.evaluation.plan import SweepPlan, Task
from moodpo.evaluation.results import (
    Baseline,
    FloatArray,
    HeldOut,
    Normalization,
    SweepResult,
    Texts,
    mean_over_prompts,
)
from moodpo.records import prompt_text

__all__ = ["assemble"]

NO_BASELINE = (
    "No base model was evaluated: rewards are normalized by the policy's own answers, so "
    "hypervolume and utilities cannot be compared with another policy's. Pass a baseline."
)


def assemble(
    task: Task,
    plan: SweepPlan,
    journal: SweepJournal,
    identities: Mapping[str, Mapping[str, Any]],
) -> SweepResult:
    """The journal's answers as arrays, with the units they are measured in.

    Args:
        task: That was run.
        plan: Its source and reference point.
        journal: Holds every row of every phase.
        identities: Who answered, by phase: `policy`, and `baseline` where there was one.

    Returns:
        The results, without metrics.
    """
    ours = _Phase.of(task, journal, "policy")
    theirs = _Phase.of(task, journal, "baseline") if "baseline" in identities else None
    normalization, reference = _units(ours if theirs is None else theirs, theirs is not None)
    return SweepResult(
        objectives=task.objectives,
        policy=identities["policy"],
        data={
            "source": plan.data_source,
            "num_prompts": len(task.prompts),
            "sha256": fingerprint(prompts=task.prompts),
        },
        weights=task.weights,
        prompts=tuple(prompt_text(prompt) for prompt in task.prompts),
        seeds=task.seeds,
        sampling=asdict(task.sampling),
        rewards=ours.rewards,
        completions=ours.completions,
        lengths=ours.lengths,
        finished=ours.finished,
        kl=ours.kl,
        held_out=_held_out(task, ours),
        baseline=_baseline(task, theirs, identities),
        normalization=normalization,
        reference_point=np.asarray(
            reference if plan.reference_point is None else plan.reference_point
        ),
        warnings=() if theirs is not None else (NO_BASELINE,),
        timings=dict(task.timings),
        versions=_versions(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    """The answers of one policy as arrays."""

    rewards: FloatArray  # [W, N, K]
    held_out: FloatArray  # [W, N, H]
    completions: Texts  # W x N
    lengths: NDArray[np.int64]  # [W, N]
    finished: NDArray[np.bool_] | None  # [W, N]
    kl: FloatArray | None  # [W, N]

    @classmethod
    def of(cls, task: Task, journal: SweepJournal, phase: str) -> _Phase:
        W = len(task.weights)
        table = [
            [journal.answers[phase, n * W + w] for n in range(len(task.prompts))] for w in range(W)
        ]
        finished = [[a.finished for a in row] for row in table]
        known = all(each is not None for row in finished for each in row)
        kl = [[math.nan if a.kl is None else a.kl for a in row] for row in table]
        return cls(
            rewards=np.array([[a.rewards for a in row] for row in table], dtype=np.float64),
            held_out=np.array([[a.held_out for a in row] for row in table], dtype=np.float64),
            completions=tuple(tuple(a.completion for a in row) for row in table),
            lengths=np.array([[a.length for a in row] for row in table]),
            finished=np.array(finished, dtype=np.bool_) if known else None,
            kl=None if np.isnan(kl).all() else np.array(kl),
        )


def _units(source: _Phase, is_baseline: bool) -> tuple[Normalization, FloatArray]:
    """Normalization and default reference point."""
    mean, std = reward_statistics(source.rewards)
    points = normalize_points(mean_over_prompts(source.rewards), mean, std)
    text = (
        "per-answer rewards of the base model under the same prompts, weights and seeds; "
        f"reference point: its lowest mean per objective minus {REFERENCE_MARGIN:g} std"
    )
    if not is_baseline:
        text = text.replace("the base model", "the policy itself (no base model was evaluated)")
    # A reward without a single score has no points: it must not hide the other objectives'.
    reference = default_reference_point(np.nan_to_num(points, nan=0.0))
    return Normalization(mean=mean, std=std, source=text), reference


def _held_out(task: Task, ours: _Phase) -> HeldOut | None:
    if task.held_out is None:
        return None
    return HeldOut(names=tuple(task.held_out.names), rewards=ours.held_out)


def _baseline(
    task: Task, theirs: _Phase | None, identities: Mapping[str, Mapping[str, Any]]
) -> Baseline | None:
    if theirs is None:
        return None
    return Baseline(
        name=str(identities["baseline"].get("name", "base model")),
        rewards=theirs.rewards,
        completions=theirs.completions,
        lengths=theirs.lengths,
        finished=theirs.finished,
        held_out_rewards=None if task.held_out is None else theirs.held_out,
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("moodpo", "torch", "transformers", "numpy", "moocore"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
