"""Sweeps of a run: over weights on held-out prompts, while training and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from moodpo.cli.console import note
from moodpo.cli.outputs import show_change, sweep_progress, write_sweep
from moodpo.cli.settings import TrainSettings
from moodpo.evaluation.front import front_hypervolume, reward_statistics
from moodpo.evaluation.results import FloatArray, SweepResult
from moodpo.evaluation.steerability import spearman_within_prompt
from moodpo.evaluation.sweep import default_weights, evaluate_policy, sweep
from moodpo.models.find import recorded_base
from moodpo.policy import SteerablePolicy

if TYPE_CHECKING:
    from moodpo.data.prompts import LoadedPrompts
    from moodpo.training.trainer import MOODPOTrainer

__all__ = ["spread_rows", "sweep_trained", "sweep_while_training", "trained_policy"]

REFERENCE_POINT = -1.0  # a standard deviation below the starting policy's mean, per objective


def sweep_trained(trainer: MOODPOTrainer, settings: TrainSettings, held_out: LoadedPrompts) -> None:
    """Sweeps the policy that was just trained and writes results, front and report.

    Args:
        trainer: After training; its model is used where it is.
        settings: Of the run; say how many weights and prompts.
        held_out: Prompts that training did not see.
    """
    run = settings.run
    policy = trained_policy(trainer, settings)
    dataset = held_out.dataset.select(spread_rows(len(held_out), run.sweep_prompts))
    weights = default_weights(len(policy.objectives), run.sweep_weights)
    note(f"sweep       {len(weights)} weight vectors × {len(dataset)} held-out prompts")
    with sweep_progress() as progress:
        result = evaluate_policy(
            policy,
            list(dataset["prompt"]),
            trainer.collector.panel,
            sampling=policy.sampling,
            weights=weights,
            seed=trainer.args.seed,
            baseline_policy=policy.base_policy(),
            columns={n: list(dataset[n]) for n in dataset.column_names if n != "prompt"},
            progress=progress,
            data_source=held_out.report.source,
        )
    write_sweep(result, settings.output_dir)
    show_change(result)


def sweep_while_training(
    settings: TrainSettings, held_out: LoadedPrompts
) -> Callable[[MOODPOTrainer], dict[str, float]]:
    """What `evaluate()` calls for `eval_hypervolume` and `eval_steerability`.

    The units are fixed for the whole run, so that evaluations can be compared: those of the
    calibrated rewards, or of the first sweep where rewards are not calibrated. The reference
    point lies one such unit below the mean of each objective.

    Args:
        settings: Of the run; say how many weights and prompts.
        held_out: Prompts that training does not see.

    Returns:
        A function of the trainer.
    """
    rows = spread_rows(len(held_out), settings.run.sweep_prompts)
    dataset = held_out.dataset.select(rows)
    columns = {n: list(dataset[n]) for n in dataset.column_names if n != "prompt"}
    units: list[tuple[FloatArray, FloatArray]] = []

    def run(trainer: MOODPOTrainer) -> dict[str, float]:
        policy = trained_policy(trainer, settings)
        names = policy.objectives
        result = sweep(
            policy,
            list(dataset["prompt"]),
            trainer.collector.panel,
            sampling=policy.sampling,
            weights=default_weights(len(names), settings.run.sweep_weights or None),
            seed=trainer.args.seed,
            columns=columns,
        )
        if not units:
            units.append(_units(trainer, result))
        mean, std = units[0]
        reference_point = [REFERENCE_POINT] * len(names)
        volume = front_hypervolume(
            result.points, mean=mean, std=std, reference_point=reference_point
        )
        within = spearman_within_prompt(result.weights, result.rewards)  # [N, K]
        obeys = np.nanmean(within, axis=0).tolist()
        each = {f"steerability/{name}": value for name, value in zip(names, obeys, strict=True)}
        return {"hypervolume": volume, "steerability": float(np.mean(obeys)), **each}

    return run


def _units(trainer: MOODPOTrainer, result: SweepResult) -> tuple[FloatArray, FloatArray]:
    statistics = trainer.normalizer.statistics
    if trainer.args.reward_normalization == "calibrate" and bool(statistics.count.any()):
        return statistics.mean.numpy(), statistics.scale().numpy()
    return reward_statistics(result.rewards)


def trained_policy(trainer: MOODPOTrainer, settings: TrainSettings) -> SteerablePolicy:
    """The trainer's model as a policy, without saving or loading anything."""
    collector, folder = trainer.collector, settings.output_dir
    return SteerablePolicy(
        trainer.model,
        collector.tokenizer,
        collector.conditioner,
        sampling=collector.sampling,
        generation_batch_size=trainer.args.generation_batch_size,
        info={
            "name": folder.name,
            "path": str(folder),
            "kind": "adapter" if hasattr(trainer.model, "disable_adapter") else "model",
            "lineage": [dict(entry) for entry in trainer.manifest().lineage],
        },
        dtype=torch.bfloat16 if trainer.args.bf16 else None,
        base=recorded_base(trainer.manifest()),
    )


def spread_rows(total: int, count: int) -> list[int]:
    """At most `count` rows, evenly spread: files are often sorted by kind."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
