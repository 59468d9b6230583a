"""After training: a small sweep over weights on held-out prompts, before against after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moodpo.cli.console import note
from moodpo.cli.outputs import show_change, sweep_progress, write_sweep
from moodpo.cli.settings import TrainSettings
from moodpo.evaluation.sweep import default_weights, evaluate_policy
from moodpo.serving.policy import SteerablePolicy

if TYPE_CHECKING:
    from moodpo.data import LoadedPrompts
    from moodpo.training.trainer import MOODPOTrainer

__all__ = ["spread_rows", "sweep_trained", "trained_policy"]


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
        base=trainer.manifest().base_model.get("path"),
    )


def spread_rows(total: int, count: int) -> list[int]:
    """At most `count` rows, evenly spread: files are often sorted by kind."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
