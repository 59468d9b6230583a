"""Sweep: one policy under many weight vectors on the same prompts.

Drives a policy and reward panels; knows nothing of how either works. Weights × prompts are one
flat list of rows that runs in chunks, so that short sweeps fill a batch and long ones can be
interrupted: finished rows are journaled. Every prompt has one seed, used under **every** weight
vector and by the base model too (common random numbers): what differs between two answers to a
prompt is what was asked, not the luck of the draw. Shapes: W weights, N prompts, K objectives.

A policy is anything with

- `objectives`: K names;
- `sample(prompts, weights, *, seeds, sampling) -> list[Answer]`: one `records.Answer` per prompt
  under the weights `[n, K]` (float64 tensor); a row may depend only on its own prompt, weights and
  seed. Plain texts will do: then nobody knows which answers were cut, and lengths are counted;

and may have

- `count_tokens(texts) -> list[int]`: lengths of answers that came as plain texts (words are counted
  otherwise); those of an `Answer` are how many tokens were sampled, the end of the sequence too;
- `kl_to_reference(prompts, weights, answers, *, sampling) -> list[float] | None`: KL per sequence
  in nats of what `sample` answered (and as it answered: texts or `Answer`s); None where unknown;
- `describe() -> dict`: what identifies it (`name`, `path`, `kind`, `lineage`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moodpo.data.messages import as_prompts
from moodpo.errors import ConfigError, DataError, GenerationError, RewardError, RewardSpecError
from moodpo.evaluation.analysis import analyze, check_thresholds
from moodpo.evaluation.front import (
    REFERENCE_MARGIN,
    default_reference_point,
    normalize_points,
    reward_statistics,
)
from moodpo.evaluation.journal import ScoredAnswer, SweepJournal, fingerprint
from moodpo.evaluation.results import (
    Baseline,
    FloatArray,
    HeldOut,
    Normalization,
    SweepResult,
    Texts,
    mean_over_prompts,
)
from moodpo.evaluation.weights import check_weights, default_weights, load_weights_file
from moodpo.records import Answer, Prompt, prompt_text

if TYPE_CHECKING:
    import os

    from torch import Tensor

    from moodpo.generation.base import SamplingConfig

__all__ = [
    "Panel",
    "Policy",
    "SweepProgress",
    "check_thresholds",
    "default_weights",
    "evaluate_policy",
    "load_weights_file",
    "prompt_seeds",
    "sweep",
]

CHUNK_SIZE = 256
NO_BASELINE = (
    "No base model was evaluated: rewards are normalized by the policy's own answers, so "
    "hypervolume and utilities cannot be compared with another policy's. Pass a baseline."
)


class Policy(Protocol):
    """What a sweep asks of a policy."""

    @property
    def objectives(self) -> Sequence[str]:
        """K names, in the order of its weights."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        *,
        seeds: Sequence[int],
        sampling: SamplingConfig,
    ) -> Sequence[Answer | str]:
        """One answer per prompt under its row of the weights `[n, K]`."""


class Panel(Protocol):
    """What a sweep asks of a panel of rewards (`rewards.RewardPanel`)."""

    @property
    def names(self) -> Sequence[str]:
        """One name per reward."""

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Tensor:
        """Raw rewards `[n, K]`, higher is better, NaN where there is no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepProgress:
    """How far a sweep is."""

    phase: str  # "policy" or "baseline"
    done: int  # rows of this phase, those of an interrupted run included
    total: int  # W x N
    restored: int  # rows taken from an interrupted run
    seconds: float  # spent on this phase in this run

    @property
    def eta_seconds(self) -> float:
        """Expected seconds to the end of the phase; NaN before the first chunk."""
        sampled = self.done - self.restored
        return self.seconds / sampled * (self.total - self.done) if sampled else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What every phase of one sweep shares. Row r is prompt r // W under weights r % W."""

    objectives: tuple[str, ...]  # K
    prompts: Sequence[Prompt]  # N
    columns: Mapping[str, Sequence[Any]]  # name -> N values
    weights: FloatArray  # [W, K]
    seeds: tuple[int, ...]  # N
    sampling: SamplingConfig
    panel: Panel
    held_out: Panel | None
    timings: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def num_rows(self) -> int:
        return len(self.prompts) * len(self.weights)


def sweep(
    policy: Policy,
    prompts: Sequence[Prompt],
    panel: Panel,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
    sampling: SamplingConfig,
    held_out: Panel | None = None,
    baseline_policy: Policy | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    resume_path: str | os.PathLike[str] | None = None,
    chunk_size: int = CHUNK_SIZE,
    progress: Callable[[SweepProgress], None] | None = None,
    reference_point: Sequence[float] | None = None,
    policy_info: Mapping[str, Any] | None = None,
    baseline_info: Mapping[str, Any] | None = None,
    data_source: str = "",
) -> SweepResult:
    """Samples and scores one answer per weight vector and prompt.

    Args:
        policy: See the module's docstring.
        prompts: N raw prompts, held out from training.
        panel: The K rewards of the policy's objectives, matched by name.
        weights: `[W, K]` in the order of the policy's objectives; `default_weights` when None.
        seed: Of all answers; prompt n is sampled with `prompt_seeds(seed, N)[n]`.
        sampling: How completions are sampled.
        held_out: Rewards that training never saw.
        baseline_policy: The base model; gives the normalized units and the comparison.
        columns: Further data columns of the prompts, passed on to the rewards.
        resume_path: A journal of finished rows; an interrupted sweep goes on from it. Delete it
            once the results are saved.
        chunk_size: Rows per call of the policy.
        progress: Called after every chunk.
        reference_point: `[K]` in normalized units; see `front.default_reference_point` for None.
        policy_info: `name`, `path`, `kind`, `lineage` for the results; `policy.describe()` when
            None.
        baseline_info: The same of the base model.
        data_source: Where the prompts came from, for the reader.

    Returns:
        The results, without metrics: see `analyze`.

    Raises:
        DataError: If there are no prompts or something else was passed as such, or a column has
            another length.
        WeightsError: If the weights do not fit the objectives.
        RewardSpecError: If the panel's names are not the policy's objectives.
        ConfigError: If a sweep is to be resumable but nothing identifies the policy, if the seed
            is negative, or if the base model has other objectives.
        GenerationError: If the policy answers another number of texts than it was asked for, or
            something else.
        RewardError: If a reward is infinite or has the wrong shape.
    """
    objectives = tuple(policy.objectives)
    prompts = as_prompts(prompts)
    columns = {name: list(values) for name, values in (columns or {}).items()}
    _check_arguments(objectives, prompts, panel, baseline_policy, columns)
    task = _Task(
        objectives=objectives,
        prompts=prompts,
        columns=columns,
        weights=check_weights(
            default_weights(len(objectives)) if weights is None else weights, objectives
        ),
        seeds=prompt_seeds(seed, len(prompts)),
        sampling=sampling,
        panel=panel,
        held_out=held_out,
    )
    identities = {"policy": _identity(policy, policy_info)}
    if baseline_policy is not None:
        identities["baseline"] = _identity(baseline_policy, baseline_info)
    journal = _open_journal(resume_path, task, identities)
    for phase, who in (("policy", policy), ("baseline", baseline_policy)):
        if who is not None:
            _run(task, who, phase, journal, max(1, chunk_size), progress)
    return _assemble(task, journal, identities, reference_point, data_source)


def evaluate_policy(
    policy: Policy,
    prompts: Sequence[Prompt],
    panel: Panel,
    *,
    sampling: SamplingConfig,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    **options: Any,
) -> SweepResult:
    """Sweeps a policy over weights and measures front, steerability and guards.

    Args:
        policy: See the module's docstring; `moodpo.SteerablePolicy` is one.
        prompts: N raw prompts, held out from training.
        panel: The K rewards of the policy's objectives, matched by name.
        sampling: How completions are sampled.
        num_resamples: Bootstrap resamples of the prompts.
        confidence: Of the intervals, in (0, 1).
        **options: Of `sweep`: `weights`, `seed`, `held_out`, `baseline_policy`, `columns`,
            `resume_path`, `chunk_size`, `progress`, `reference_point`, `policy_info`,
            `baseline_info`, `data_source`.

    Returns:
        The results with metrics, steerability and warnings; `save` writes `results.json`.

    Raises:
        MOODPOError: As `sweep`.
    """
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ConfigError(
            f"num_resamples must be at least 1 and confidence between 0 and 1; got {num_resamples} "
            f"and {confidence}."
        )
    result = sweep(policy, prompts, panel, sampling=sampling, **options)
    started = time.perf_counter()
    analyzed = analyze(
        result, num_resamples=num_resamples, seed=options.get("seed", 0), confidence=confidence
    )
    timings = {**analyzed.timings, "analyze": time.perf_counter() - started}
    return replace(analyzed, timings=timings)


def prompt_seeds(seed: int, num_prompts: int) -> tuple[int, ...]:
    """One seed per prompt, a function of the sweep's seed and the prompt's place alone.

    Args:
        seed: Of the sweep, at least 0.
        num_prompts: N.

    Returns:
        N integers below 2^53, which every JSON reader keeps exact.

    Raises:
        ConfigError: If the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed must be at least 0; got {seed}.")
    states = (np.random.SeedSequence([seed, n]) for n in range(num_prompts))
    return tuple(int(state.generate_state(1, np.uint64)[0]) >> 11 for state in states)


def _run(
    task: _Task,
    policy: Policy,
    phase: str,
    journal: SweepJournal,
    chunk_size: int,
    progress: Callable[[SweepProgress], None] | None,
) -> None:
    """Samples and scores the rows that the journal lacks."""
    pending = [row for row in range(task.num_rows) if (phase, row) not in journal]
    restored = done = task.num_rows - len(pending)
    started = time.perf_counter()
    for first in range(0, len(pending), chunk_size):
        rows = pending[first : first + chunk_size]
        journal.append(_answer_rows(task, policy, phase, rows))
        done += len(rows)
        if progress is not None:
            seconds = time.perf_counter() - started
            progress(
                SweepProgress(
                    phase=phase, done=done, total=task.num_rows, restored=restored, seconds=seconds
                )
            )


def _answer_rows(
    task: _Task, policy: Policy, phase: str, rows: Sequence[int]
) -> list[ScoredAnswer]:
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
    kl = _kl_to_reference(policy, prompts, weights, said, task.sampling)
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
    count = getattr(policy, "count_tokens", None)
    counted = iter(count(texts) if count and texts else [len(text.split()) for text in texts])
    return [int(next(counted)) if a.token_ids is None else len(a.token_ids) for a in answers]


def _kl_to_reference(
    policy: Policy,
    prompts: Sequence[Prompt],
    weights: Tensor,
    said: Sequence[Answer | str],
    sampling: SamplingConfig,
) -> Sequence[float | None]:
    estimate = getattr(policy, "kl_to_reference", None)
    values = None if estimate is None else estimate(prompts, weights, said, sampling=sampling)
    return [None] * len(said) if values is None else [float(value) for value in values]


def _assemble(
    task: _Task,
    journal: SweepJournal,
    identities: Mapping[str, Mapping[str, Any]],
    reference_point: Sequence[float] | None,
    data_source: str,
) -> SweepResult:
    """The journal's answers as arrays, with the units they are measured in."""
    ours = _Phase.of(task, journal, "policy")
    theirs = _Phase.of(task, journal, "baseline") if "baseline" in identities else None
    normalization, reference = _units(ours if theirs is None else theirs, theirs is not None)
    return SweepResult(
        objectives=task.objectives,
        policy=identities["policy"],
        data={
            "source": data_source,
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
        reference_point=np.asarray(reference if reference_point is None else reference_point),
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
    def of(cls, task: _Task, journal: SweepJournal, phase: str) -> _Phase:
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


def _held_out(task: _Task, ours: _Phase) -> HeldOut | None:
    if task.held_out is None:
        return None
    return HeldOut(names=tuple(task.held_out.names), rewards=ours.held_out)


def _baseline(
    task: _Task, theirs: _Phase | None, identities: Mapping[str, Mapping[str, Any]]
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


def _open_journal(
    path: str | os.PathLike[str] | None, task: _Task, identities: Mapping[str, Mapping[str, Any]]
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


def _identity(policy: Policy, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the caller says of a policy, else what it says of itself, else its class."""
    describe = getattr(policy, "describe", None)
    if given is None and describe is None:
        return {"name": type(policy).__name__, "kind": type(policy).__name__, "lineage": {}}
    return dict(given if given is not None else describe())  # type: ignore[misc]


def _check_arguments(
    objectives: tuple[str, ...],
    prompts: Sequence[Prompt],
    panel: Panel,
    baseline_policy: Policy | None,
    columns: Mapping[str, Sequence[Any]],
) -> None:
    if not prompts:
        raise DataError("There are no prompts to evaluate on. Pass at least one.")
    for name, values in columns.items():
        if len(values) != len(prompts):
            raise DataError(f"Column {name!r} has {len(values)} values for {len(prompts)} prompts.")
    if sorted(panel.names) != sorted(objectives):
        raise RewardSpecError(
            f"The policy's objectives are {', '.join(objectives)}, but the rewards are "
            f"{', '.join(panel.names)}. Pass one reward per objective, under its name."
        )
    if baseline_policy is not None and tuple(baseline_policy.objectives) != objectives:
        raise ConfigError(
            f"The base model is steered by {list(baseline_policy.objectives)}, the policy by "
            f"{list(objectives)}. Both need the same objectives in the same order."
        )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("moodpo", "torch", "transformers", "numpy", "moocore"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


@contextlib.contextmanager
def _timed(task: _Task, name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        task.timings[name] += time.perf_counter() - started
