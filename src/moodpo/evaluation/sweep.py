"""Sweep: one policy under many weight vectors on the same prompts.

Drives a policy and reward panels (`moodpo.protocols`); knows nothing of how either works. Weights ×
prompts are one flat list of rows that runs in chunks, so that short sweeps fill a batch and long
ones can be interrupted: finished rows are journaled. Every prompt has one seed, used under
**every** weight vector and by the base model too (common random numbers): what differs between two
answers to a prompt is what was asked, not the luck of the draw. Shapes: W weights, N prompts, K
objectives.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from moodpo.errors import ConfigError, GenerationError, RewardError
from moodpo.evaluation.analysis import analyze
from moodpo.evaluation.assembly import assemble
from moodpo.evaluation.journal import ScoredAnswer, SweepJournal, fingerprint
from moodpo.evaluation.plan import SweepOptions, SweepPlan, Task
from moodpo.evaluation.results import FloatArray, SweepResult
from moodpo.protocols import Panel, Policy, as_policy
from moodpo.records import Answer, Prompt

if TYPE_CHECKING:
    pass

__all__ = ["SweepProgress", "evaluate_policy", "run_sweep"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepProgress:
    """How far a sweep is."""

    phase: str  # "policy" or "baseline"
    done: int  # rows of this phase, those of an interrupted run included
    total: int  # W x N
    restored: int  # rows taken from an interrupted run


Progress = Callable[[SweepProgress], None]


def evaluate_policy(
    policy: Policy,
    prompts: Sequence[Prompt],
    panel: Panel,
    plan: SweepPlan | None = None,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    progress: Progress | None = None,
    **options: Unpack[SweepOptions],
) -> SweepResult:
    """Sweeps a policy over weights and measures front, steerability and guards.

    Args:
        policy: See `protocols.Policy`; `moodpo.SteerablePolicy` is one.
        prompts: N raw prompts, held out from training.
        panel: The K rewards of the policy's objectives, matched by name.
        plan: Everything else; the defaults of `SweepPlan` when None.
        num_resamples: Bootstrap resamples of the prompts.
        confidence: Of the intervals, in (0, 1).
        progress: Called after every chunk.
        **options: Attributes of the plan to change, such as `weights` or `seed`.

    Returns:
        The results with metrics, steerability and warnings; `save` writes `results.json`.

    Raises:
        MOODPOError: As `run_sweep`.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ConfigError(
            f"num_resamples must be at least 1 and confidence between 0 and 1; got {num_resamples} "
            f"and {confidence}."
        )
    plan = replace(plan or SweepPlan(), **options)
    result = run_sweep(policy, prompts, panel, plan, progress=progress)
    started = time.perf_counter()
    analyzed = analyze(result, num_resamples=num_resamples, seed=plan.seed, confidence=confidence)
    timings = {**analyzed.timings, "analyze": time.perf_counter() - started}
    return replace(analyzed, timings=timings)


def run_sweep(
    policy: Policy,
    prompts: Sequence[Prompt],
    panel: Panel,
    plan: SweepPlan | None = None,
    *,
    progress: Progress | None = None,
    **options: Unpack[SweepOptions],
) -> SweepResult:
    """Samples and scores one answer per weight vector and prompt.

    Args:
        policy: See `protocols.Policy`.
        prompts: N raw prompts, held out from training.
        panel: The K rewards of the policy's objectives, matched by name.
        plan: Everything else; the defaults of `SweepPlan` when None.
        progress: Called after every chunk.
        **options: Attributes of the plan to change.

    Returns:
        The results, without metrics: see `analyze`.

    Raises:
        DataError: If there are no prompts or something else was passed as such, or a column has
            another length.
        WeightsError: If the weights do not fit the objectives.
        RewardSpecError: If the panel's names are not the policy's objectives.
        ConfigError: If a sweep is to be resumable but nothing identifies the policy, if nothing
            says how to sample, if the seed is negative, or if the base model has other objectives.
        GenerationError: If the policy answers another number of texts than it was asked for, or
            something else.
        RewardError: If a reward is infinite or has the wrong shape.
    """
    plan = replace(plan or SweepPlan(), **options)
    phases = {"policy": as_policy(policy)}
    infos = {"policy": plan.policy_info, "baseline": plan.baseline_info}
    task = Task.of(phases["policy"], prompts, panel, plan)
    if plan.baseline_policy is not None:
        phases["baseline"] = as_policy(plan.baseline_policy)
    identities = {
        phase: dict(who.describe() if (info := infos[phase]) is None else info)
        for phase, who in phases.items()
    }
    journal = _open_journal(plan.resume_path, task, identities)
    for phase, who in phases.items():
        _run(task, who, phase, journal, max(1, plan.chunk_size), progress)
    return assemble(task, plan, journal, identities)


def _run(
    task: Task,
    policy: Policy,
    phase: str,
    journal: SweepJournal,
    chunk_size: int,
    progress: Progress | None,
) -> None:
    """Samples and scores the rows that the journal lacks."""
    pending = [row for row in range(task.num_rows) if (phase, row) not in journal]
    restored = done = task.num_rows - len(pending)
    for first in range(0, len(pending), chunk_size):
        rows = pending[first : first + chunk_size]
        journal.append(_answer_rows(task, policy, phase, rows))
        done += len(rows)
        if progress is not None:
            total = task.num_rows
            progress(SweepProgress(phase=phase, done=done, total=total, restored=restored))


def _answer_rows(task: Task, policy: Policy, phase: str, rows: Sequence[int]) -> list[ScoredAnswer]:
    """One chunk: sample, count, score."""
    import torch

    W = len(task.weights)
    places = [row // W for row in rows]
    prompts = [task.prompts[n] for n in places]
    weights = torch.tensor(task.weights[[row % W for row in rows]], dtype=torch.float64)
    seeds = [task.seeds[n] for n in places]
    with _timed(task, f"{phase}/generate"):
        said = list(policy.sample(prompts, weights, seeds=seeds, sampling=task.sampling))
    answers = _as_answers(policy, said, len(rows))
    texts = [answer.text for answer in answers]
    with _timed(task, f"{phase}/score"):
        columns = {name: [values[n] for n in places] for name, values in task.columns.items()}
        if all(answer.token_ids is not None for answer in answers):
            columns["completion_ids"] = [list(answer.token_ids or ()) for answer in answers]
        rewards = _score(task.panel, task.objectives, prompts, texts, columns)
        held_out = _score(task.held_out, None, prompts, texts, columns)
    lengths = _lengths(policy, answers)
    estimate = policy.kl_to_reference(prompts, weights, said, sampling=task.sampling)
    kl = [None] * len(rows) if estimate is None else [float(value) for value in estimate]
    return [
        ScoredAnswer(
            phase=phase,
            row=row,
            completion=texts[i],
            token_ids=answers[i].token_ids,
            finished=answers[i].finished,
            length=lengths[i],
            rewards=rewards[i].tolist(),
            held_out=held_out[i].tolist(),
            kl=kl[i],
        )
        for i, row in enumerate(rows)
    ]


def _score(
    panel: Panel | None,
    order: Sequence[str] | None,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> FloatArray:
    """Raw rewards `[n, K]` in the given order of names; `[n, 0]` without a panel."""
    if panel is None:
        return np.empty((len(texts), 0))
    names = list(panel.names)
    scores = np.asarray(panel.score(prompts, texts, columns or None), dtype=np.float64)
    if scores.shape != (len(texts), len(names)):
        raise RewardError(
            f"The rewards {', '.join(names)} answered shape {list(scores.shape)} for {len(texts)} "
            f"texts; expected {[len(texts), len(names)]}."
        )
    if np.isinf(scores).any():
        name = names[int(np.isinf(scores).any(axis=0).argmax())]
        raise RewardError(f"{name} answered infinity. Return NaN for texts without a score.")
    ordered: FloatArray = scores[:, [names.index(name) for name in order or names]]
    return ordered


def _as_answers(policy: Policy, said: Sequence[Answer | str], count: int) -> list[Answer]:
    """What a policy said, as one record per row; a plain text is an answer of unknown tokens."""
    if len(said) != count:
        raise GenerationError(
            f"{type(policy).__name__}.sample answered {len(said)} texts for {count} prompts. "
            "It must return one answer per prompt."
        )
    answers = [Answer(each) if isinstance(each, str) else each for each in said]
    if odd := [each for each in answers if not isinstance(each, Answer)]:
        raise GenerationError(
            f"{type(policy).__name__}.sample answered {odd[0]!r:.60}, which is neither a text nor "
            "a moodpo.records.Answer. It must return one of them per prompt."
        )
    return answers


def _lengths(policy: Policy, answers: Sequence[Answer]) -> list[int]:
    """How many tokens were sampled; of answers that are texts alone, what the policy counts."""
    texts = [answer.text for answer in answers if answer.token_ids is None]
    counted = iter(policy.count_tokens(texts) if texts else ())
    return [int(next(counted)) if a.token_ids is None else len(a.token_ids) for a in answers]


def _open_journal(
    path: str | os.PathLike[str] | None, task: Task, identities: Mapping[str, Mapping[str, Any]]
) -> SweepJournal:
    if path is not None and any("path" not in identity for identity in identities.values()):
        raise ConfigError(
            "resume_path needs to know which policy its answers belong to: pass policy_info (and "
            "baseline_info) with at least name and path, or give the policy a describe() method."
        )
    key = fingerprint(
        policies=identities,
        objectives=task.objectives,
        prompts=task.prompts,
        columns=task.columns,
        weights=task.weights.tolist(),
        seeds=task.seeds,
        sampling=asdict(task.sampling),
        rewards=_description(task.panel),
        held_out=_description(task.held_out),
    )
    return SweepJournal(path, fingerprint=key)


def _description(panel: Panel | None) -> Any:
    """What the panel says of itself; its names where it says nothing."""
    describe = getattr(panel, "describe", None)
    return describe() if describe else list(getattr(panel, "names", ()))


@contextlib.contextmanager
def _timed(task: Task, name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        task.timings[name] += time.perf_counter() - started
