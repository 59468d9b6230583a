"""Calibration: the scale of each reward, from the reference's own samples before step 1.

Shapes: n prompts of this process, M weight vectors of each, g completions, K objectives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moodpo.core.seeds import derive_seed
from moodpo.records import PromptBatch
from moodpo.training.config import MOODPOConfig
from moodpo.training.parallel import Processes, collate_prompts, share
from moodpo.training.rollout import RolloutCollector

__all__ = ["calibration_batch", "reference_rewards"]


def calibration_batch(dataset: Any, args: MOODPOConfig, processes: Processes) -> PromptBatch:
    """This process's share of the prompts to calibrate on, the same for any number of processes.

    Args:
        dataset: All prompts.
        args: Say how many, and the seed of their choice.
        processes: Those that share them.
    """
    order = torch.randperm(
        len(dataset),
        generator=torch.Generator().manual_seed(derive_seed(args.seed, "calibrate")),
    ).tolist()
    count = max(1, min(args.calibration_prompts, len(dataset)))
    positions = share(range(count), processes.count, processes.index)
    rows = collate_prompts([dataset[order[p]] for p in positions])
    return PromptBatch(indices=positions, **rows)


def reference_rewards(
    collector: RolloutCollector, dataset: Any, args: MOODPOConfig, processes: Processes
) -> Tensor:
    """Raw rewards `[n * M * g of all processes, K]` of the reference, under weights as in training.

    Args:
        collector: Of the run.
        dataset: All prompts.
        args: The settings.
        processes: Those that share the prompts.
    """
    batch = calibration_batch(dataset, args, processes)
    rollout = collector.collect(batch, key=(args.seed, "calibrate"), who="reference")
    return processes.gather(rollout.rewards).flatten(0, 2)
