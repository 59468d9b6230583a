"""Sweeps of a policy that is in training, or just was: from memory, on held-out prompts.

Training does not know evaluation: it is handed `sweep_during(...)` as its `sweep`. Both kinds of
sweep lay out the same weights. Shapes: W weights, N prompts, K objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moodpo.evaluation.front import front_hypervolume, reward_statistics
from moodpo.evaluation.plan import pick_prompts
from moodpo.evaluation.results import FloatArray, SweepResult
from moodpo.evaluation.steerability import spearman_within_prompt
from moodpo.evaluation.sweep import Progress, evaluate_policy, run_sweep
from moodpo.evaluation.weights import default_weights
from moodpo.models.find import recorded_base

if TYPE_CHECKING:
    from moodpo.manifest import RunManifest
    from moodpo.policy import SteerablePolicy

__all__ = ["Training", "evaluate_trained", "policy_in_training", "sweep_during"]

REFERENCE_POINT = -1.0  # a standard deviation below the starting policy's mean, per objective


class Training(Protocol):
    """What a sweep reads of `moodpo.MOODPOTrainer`."""

    args: Any
    model: Any
    collector: Any
    normalizer: Any

    def manifest(self) -> RunManifest:
        """What would be saved beside the weights."""


def evaluate_trained(
    trainer: Training,
    dataset: Any,
    *,
    num_prompts: int = 64,
    levels: int | None = None,
    data_source: str = "",
    progress: Progress | None = None,
) -> SweepResult:
    """Evaluates the policy that a trainer holds, against the model before training.

    Args:
        trainer: Its model is used where it is.
        dataset: Held-out rows with a `prompt`.
        num_prompts: At most so many, evenly spread.
        levels: Weights per objective; see `default_weights`.
        data_source: Where the prompts came from, for the reader.
        progress: Called after every chunk.

    Returns:
        As `evaluate_policy`.
    """
    policy = policy_in_training(trainer)
    prompts, columns = pick_prompts(dataset, num_prompts)
    return evaluate_policy(
        policy,
        prompts,
        trainer.collector.panel,
        weights=default_weights(len(policy.objectives), levels),
        seed=trainer.args.seed,
        baseline_policy=policy.base_policy(),
        columns=columns,
        data_source=data_source,
        progress=progress,
    )


def sweep_during(
    dataset: Any, *, num_prompts: int = 64, levels: int | None = None
) -> Callable[[Training], dict[str, float]]:
    """What `MOODPOTrainer(sweep=...)` calls for `eval_hypervolume` and `eval_steerability`.

    The units are fixed for the whole run, so that evaluations can be compared: those of the
    calibrated rewards, or of the first sweep where rewards are not calibrated. The reference
    point lies one such unit below the mean of each objective.

    Args:
        dataset: Held-out rows with a `prompt`.
        num_prompts: At most so many, evenly spread.
        levels: Weights per objective; see `default_weights`.

    Returns:
        A function of the trainer: `hypervolume`, `steerability` and `steerability/<objective>`.
    """
    prompts, columns = pick_prompts(dataset, num_prompts)
    units: list[tuple[FloatArray, FloatArray]] = []

    def run(trainer: Training) -> dict[str, float]:
        policy = policy_in_training(trainer)
        result = run_sweep(
            policy,
            prompts,
            trainer.collector.panel,
            weights=default_weights(len(policy.objectives), levels),
            seed=trainer.args.seed,
            columns=columns,
        )
        if not units:
            units.append(_units(trainer, result))
        return _measures(result, *units[0])

    return run


def policy_in_training(trainer: Training) -> SteerablePolicy:
    """The trainer's model as a policy, without saving or loading anything."""
    import torch

    from moodpo.policy import SteerablePolicy

    collector, args, manifest = trainer.collector, trainer.args, trainer.manifest()
    return SteerablePolicy(
        trainer.model,
        collector.tokenizer,
        collector.conditioner,
        sampling=collector.sampling,
        generation_batch_size=args.generation_batch_size,
        info={
            "name": Path(args.output_dir).name,
            "path": str(Path(args.output_dir)),
            "kind": "adapter" if hasattr(trainer.model, "disable_adapter") else "model",
            "lineage": [dict(entry) for entry in manifest.lineage],
        },
        dtype=torch.bfloat16 if args.bf16 else None,
        base=recorded_base(manifest),
    )


def _units(trainer: Training, result: SweepResult) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation `[K]` of raw rewards."""
    statistics = trainer.normalizer.statistics
    if trainer.args.reward_normalization == "calibrate" and bool(statistics.count.any()):
        return statistics.mean.numpy(), statistics.scale().numpy()
    return reward_statistics(result.rewards)


def _measures(result: SweepResult, mean: FloatArray, std: FloatArray) -> dict[str, float]:
    names = result.objectives
    reference_point = [REFERENCE_POINT] * len(names)
    volume = front_hypervolume(result.points, mean=mean, std=std, reference_point=reference_point)
    within = spearman_within_prompt(result.weights, result.rewards)  # [N, K]
    obeys = np.nanmean(within, axis=0).tolist()
    each = {f"steerability/{name}": value for name, value in zip(names, obeys, strict=True)}
    return {"hypervolume": volume, "steerability": float(np.mean(obeys)), **each}
