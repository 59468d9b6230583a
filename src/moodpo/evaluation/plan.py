"""Plan of a sweep: what is asked, of whom and how, checked before anything is sampled.

Knows nothing of how answers are sampled or measured. Shapes: W weights, N prompts, K objectives.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from moodpo.data.messages import as_prompts
from moodpo.errors import ConfigError, DataError, RewardSpecError
from moodpo.evaluation.results import FloatArray
from moodpo.evaluation.weights import check_weights, default_weights
from moodpo.protocols import Panel, Policy
from moodpo.records import Prompt

if TYPE_CHECKING:
    from moodpo.generation.base import SamplingConfig

__all__ = ["SweepOptions", "SweepPlan", "Task", "pick_prompts", "prompt_seeds"]

CHUNK_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepPlan:
    """All that a sweep is told beside a policy, prompts and rewards.

    Attributes:
        weights: `[W, K]` in the order of the policy's objectives; `default_weights` when None.
        seed: Of all answers; prompt n is sampled with `prompt_seeds(seed, N)[n]`.
        sampling: How completions are sampled; as the policy does when None.
        held_out: Rewards that training never saw.
        baseline_policy: The base model; gives the normalized units and the comparison.
        columns: Further data columns of the prompts, passed on to the rewards.
        resume_path: A journal of finished rows; an interrupted sweep goes on from it. Delete it
            once the results are saved.
        chunk_size: Rows per call of the policy.
        reference_point: `[K]` in normalized units; see `front.default_reference_point` for None.
        policy_info: `name`, `path`, `kind`, `lineage` for the results; `policy.describe()` when
            None.
        baseline_info: The same of the base model.
        data_source: Where the prompts came from, for the reader.
    """

    weights: ArrayLike | None = None
    seed: int = 0
    sampling: SamplingConfig | None = None
    held_out: Panel | None = None
    baseline_policy: Policy | None = None
    columns: Mapping[str, Sequence[Any]] | None = None
    resume_path: str | os.PathLike[str] | None = None
    chunk_size: int = CHUNK_SIZE
    reference_point: Sequence[float] | None = None
    policy_info: Mapping[str, Any] | None = None
    baseline_info: Mapping[str, Any] | None = None
    data_source: str = ""


class SweepOptions(TypedDict, total=False):
    """The attributes of a `SweepPlan`, to be passed one by one."""

    weights: ArrayLike | None
    seed: int
    sampling: SamplingConfig | None
    held_out: Panel | None
    baseline_policy: Policy | None
    columns: Mapping[str, Sequence[Any]] | None
    resume_path: str | os.PathLike[str] | None
    chunk_size: int
    reference_point: Sequence[float] | None
    policy_info: Mapping[str, Any] | None
    baseline_info: Mapping[str, Any] | None
    data_source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A plan that fits its policy: what every phase of one sweep shares.

    Row r is prompt r // W under weights r % W.
    """

    objectives: tuple[str, ...]  # K
    prompts: Sequence[Prompt]  # N
    columns: Mapping[str, Sequence[Any]]  # name -> N values
    weights: FloatArray  # [W, K]
    seeds: tuple[int, ...]  # N
    sampling: SamplingConfig
    panel: Panel
    held_out: Panel | None
    timings: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def of(cls, policy: Policy, prompts: Sequence[Prompt], panel: Panel, plan: SweepPlan) -> Task:
        """Checks what does not fit; see `sweep.run_sweep` for the errors."""
        objectives = tuple(policy.objectives)
        prompts = as_prompts(prompts)
        columns = {name: list(values) for name, values in (plan.columns or {}).items()}
        _check_arguments(objectives, prompts, panel, plan.baseline_policy, columns)
        weights = plan.weights
        if weights is None:
            weights = default_weights(len(objectives))
        sampling = plan.sampling or policy.sampling
        if sampling is None:
            raise ConfigError(
                f"{type(policy).__name__} does not say how it samples. Pass sampling=."
            )
        return cls(
            objectives=objectives,
            prompts=prompts,
            columns=columns,
            weights=check_weights(weights, objectives),
            seeds=prompt_seeds(plan.seed, len(prompts)),
            sampling=sampling,
            panel=panel,
            held_out=plan.held_out,
        )

    @property
    def num_rows(self) -> int:
        """W x N."""
        return len(self.prompts) * len(self.weights)


def pick_prompts(dataset: Any, count: int) -> tuple[list[Prompt], dict[str, list[Any]]]:
    """Prompts and further columns of rows that are evenly spread: files are often sorted by kind.

    Args:
        dataset: A `datasets.Dataset` with a `prompt` column.
        count: At most so many rows.

    Returns:
        The prompts, and by name the columns beside them.
    """
    count = min(count, len(dataset))
    chosen = dataset.select([i * len(dataset) // count for i in range(count)])
    columns = {name: list(chosen[name]) for name in chosen.column_names}
    return columns.pop("prompt"), columns


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
