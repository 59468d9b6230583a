"""State: the files that lie beside a run's weights, and what of a run the Trainer does not keep.

Reward statistics, the metrics since the last log, and what the watch has counted go into
`moodpo_state.json` of a checkpoint: a resumed run's first log is the uninterrupted one's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moodpo.files import share_files, write_json
from moodpo.manifest import RunManifest
from moodpo.models.savable import record_base
from moodpo.rewards.normalize import Normalizer
from moodpo.training.card import write_model_card
from moodpo.training.checkpoints import STATE_NAME
from moodpo.training.parallel import Processes
from moodpo.training.recorder import Recorder

__all__ = ["restore_state", "run_state", "write_run_files"]


def run_state(recorder: Recorder, normalizer: Normalizer, processes: Processes) -> dict[str, Any]:
    """What `moodpo_state.json` of a checkpoint holds; called by every process.

    Args:
        recorder: Its metrics are added up, its counts are the same everywhere.
        normalizer: Reward statistics, the same on all processes.
        processes: Whose metrics are added up.
    """
    store = recorder.training
    store.complete(processes.others_names(store.names))
    metrics = store.state_dict()
    if metrics:
        stacked = torch.tensor([metrics[n] for n in sorted(metrics)], dtype=torch.float64)
        totals = processes.reduce(stacked).tolist()
        metrics = dict(zip(sorted(metrics), totals, strict=True))
    return {
        "metrics": metrics,
        "normalizer": normalizer.state_dict(),
        "watch": recorder.watch.state_dict(),
    }


def restore_state(checkpoint: Path, recorder: Recorder, processes: Processes) -> Normalizer:
    """Goes on where `run_state` stopped.

    Args:
        checkpoint: Complete.
        recorder: The first process's is given the metrics of all, the others' none of them.
        processes: Say which this is.

    Returns:
        The normalizer as it was.
    """
    state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    metrics = state["metrics"]
    own = metrics if processes.index == 0 else {name: [0.0, 0.0] for name in metrics}
    recorder.training.load_state_dict(own)
    recorder.watch.load_state_dict(state.get("watch"))
    return Normalizer.from_state_dict(state["normalizer"])


def write_run_files(
    folder: Path, manifest: RunManifest, *, base: str | None, state: Mapping[str, Any] | None
) -> None:
    """Writes `moodpo.json`, the card, and the state of a checkpoint, beside saved weights.

    Args:
        folder: Of the weights.
        manifest: Of the run.
        base: Path or id of the model under the adapter.
        state: From `run_state`, for a checkpoint.
    """
    manifest.save(folder)
    write_model_card(manifest, folder)
    if state is not None:
        write_json(folder / STATE_NAME, state)
    record_base(folder, base)
    share_files(folder)
