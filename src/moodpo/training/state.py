"""State: what of a run lies outside the Trainer's own checkpoint, in JSON beside it.

Reward statistics, the metrics since the last log, and what the watch has counted: a resumed run's
first log is the uninterrupted one's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from moodpo.rewards.normalize import Normalizer
from moodpo.training.alarms import SignalWatch
from moodpo.training.checkpoints import STATE_NAME
from moodpo.training.metrics import MetricStore
from moodpo.training.parallel import Processes

__all__ = ["read_state", "restore_metrics", "run_state"]


def run_state(
    store: MetricStore, normalizer: Normalizer, watch: SignalWatch, processes: Processes
) -> dict[str, Any]:
    """What `moodpo_state.json` of a checkpoint holds; called by every process.

    Args:
        store: Metrics since the last log.
        normalizer: Reward statistics, the same on all processes.
        watch: Its counts, likewise.
        processes: Whose metrics are added up.
    """
    store.complete(processes.others_names(store.names))
    metrics = store.state_dict()
    if processes.count > 1 and metrics:
        stacked = torch.tensor([metrics[n] for n in sorted(metrics)], dtype=torch.float64)
        totals = processes.reduce(stacked).tolist()
        metrics = dict(zip(sorted(metrics), totals, strict=True))
    return {
        "metrics": metrics,
        "normalizer": normalizer.state_dict(),
        "watch": watch.state_dict(),
    }


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What `run_state` gave for a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    return state


def restore_metrics(store: MetricStore, state: dict[str, Any], *, index: int) -> None:
    """Gives the first process the metrics of all, and the others none of them."""
    metrics = state["metrics"]
    store.load_state_dict(metrics if index == 0 else {name: [0.0, 0.0] for name in metrics})
