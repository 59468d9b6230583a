"""After a run: what its policy does with the weights, as files and on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moodpo.cli.console import note
from moodpo.cli.outputs import show_change, sweep_progress, write_sweep
from moodpo.cli.settings import TrainSettings
from moodpo.evaluation.during import evaluate_trained

if TYPE_CHECKING:
    from moodpo.data.prompts import LoadedPrompts
    from moodpo.training.trainer import MOODPOTrainer

__all__ = ["sweep_trained"]


def sweep_trained(trainer: MOODPOTrainer, settings: TrainSettings, held_out: LoadedPrompts) -> None:
    """Sweeps the policy that was just trained and writes results, front and report.

    Args:
        trainer: After training; its model is used where it is.
        settings: Of the run; say how many weights and prompts.
        held_out: Prompts that training did not see.
    """
    run = settings.run
    count = min(run.sweep_prompts, len(held_out))
    note(f"sweep       {run.sweep_weights} weights per objective × {count} held-out prompts")
    with sweep_progress() as progress:
        result = evaluate_trained(
            trainer,
            held_out.dataset,
            num_prompts=run.sweep_prompts,
            levels=run.sweep_weights,
            data_source=held_out.report.source,
            progress=progress,
        )
    write_sweep(result, settings.output_dir)
    show_change(result)
