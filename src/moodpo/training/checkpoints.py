"""Runs on disk: whether a folder holds one, and which checkpoint can be continued exactly.

Reads names of files; imports no torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from moodpo.errors import ConfigError
from moodpo.manifest import MANIFEST_NAME
from moodpo.models.find import checkpoints_in, has_weights

__all__ = ["STATE_NAME", "delete_run", "find_checkpoint", "holds_run"]

STATE_NAME = "moodpo_state.json"

_RESUME_FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", STATE_NAME, MANIFEST_NAME)
_RUN_FILES = (MANIFEST_NAME, "metrics.jsonl", "completions.jsonl", "trainer_state.json")


def find_checkpoint(
    asked: str | os.PathLike[str] | Literal[True],
    output_dir: str | os.PathLike[str],
    *,
    warn: Callable[[str], None],
) -> Path:
    """The checkpoint to continue from, complete.

    Args:
        asked: A checkpoint's folder; True is the newest complete one of `output_dir`.
        output_dir: Of the run.
        warn: Told of incomplete ones that are passed over.

    Raises:
        ConfigError: If there is none that can be continued exactly.
    """
    if asked is True:
        return _newest_complete(Path(output_dir), warn)
    folder = Path(os.fspath(asked)).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"resume_from_checkpoint {folder} does not exist. Pass a checkpoint's folder, such as "
            "outputs/iter1/checkpoint-500."
        )
    if missing := _missing_files(folder):
        inside = checkpoints_in(folder)
        hint = f" Did you mean {inside[-1]}?" if inside else ""
        raise ConfigError(
            f"resume_from_checkpoint {folder} lacks {', '.join(missing)}: it cannot be continued "
            "exactly. Pass an earlier checkpoint, or start from it (--model_path) with a fresh "
            f"optimizer.{hint}"
        )
    return folder


def holds_run(folder: Path) -> bool:
    """Whether a folder is the output of a run, finished or not."""
    return (folder / MANIFEST_NAME).is_file() or bool(checkpoints_in(folder))


def delete_run(folder: Path) -> None:
    """Deletes what a run wrote into a folder, where it holds one, and nothing else."""
    if not holds_run(folder):
        return
    for checkpoint in checkpoints_in(folder):
        shutil.rmtree(checkpoint)
    for name in _RUN_FILES:
        (folder / name).unlink(missing_ok=True)


def _missing_files(folder: Path) -> list[str]:
    """What a checkpoint lacks for an exact continuation."""
    names = [n for n in _RESUME_FILES if not (folder / n).is_file()]
    if not any(folder.glob("rng_state*.pth")):
        names.append("rng_state.pth")
    return names if has_weights(folder) else [*names, "*.safetensors"]


def _newest_complete(folder: Path, warn: Callable[[str], None]) -> Path:
    found = checkpoints_in(folder)
    for checkpoint in reversed(found):
        if not (missing := _missing_files(checkpoint)):
            return checkpoint
        warn(f"{checkpoint} lacks {', '.join(missing)}; trying the one before.")
    what = "no complete checkpoint" if found else "no checkpoint"
    raise ConfigError(
        f"resume_from_checkpoint True: {folder} has {what}. Check output_dir, or start afresh "
        "without it."
    )
