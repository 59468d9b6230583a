"""Tracking: Weights & Biases without surprises. It never asks, never hangs and never ends a run.

The Trainer's own callback logs into a run that exists already, so the run is made here: online
where a key is configured, offline otherwise, and offline too when the service does not answer.
Other trackers are left to `--report_to`.
"""

from __future__ import annotations

import importlib.util
import netrc
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from moodpo.cli.console import is_main_process, note, warn
from moodpo.cli.settings import TrainSettings

__all__ = ["choose_trackers", "finish_wandb", "has_credentials", "start_wandb"]

PROJECT = "moodpo"
INIT_SECONDS = 15
PROBE_SECONDS = 3
_LOCAL_MODES = ("offline", "dryrun", "disabled")


def choose_trackers(settings: TrainSettings) -> dict[str, Any]:
    """What `--report_to`, `--run_name` and `--project` are where the user did not say.

    Args:
        settings: As read.

    Returns:
        Settings for `TrainSettings.training_config`, which the user's own win over.
    """
    wanted = not settings.run.disable_wandb and importlib.util.find_spec("wandb") is not None
    if settings.run.wandb_name and not settings.run.disable_wandb and not wanted:
        warn("wandb is not installed: nothing is logged there. pip install wandb")
    return {
        "report_to": ["wandb"] if wanted else [],
        "run_name": settings.run.wandb_name,
        "project": PROJECT,
    }


def start_wandb(name: str | None, folder: Path, config: Mapping[str, Any]) -> None:
    """Starts the run that the Trainer logs into; does nothing but on the main process.

    Args:
        name: Of the run.
        folder: Where its files go, unless WANDB_DIR says otherwise.
        config: Recorded with the run.
    """
    if not is_main_process():
        return
    import wandb

    if wandb.run is not None:
        return
    mode: Any = os.environ.get("WANDB_MODE")
    service = wandb.Settings().base_url
    if mode not in _LOCAL_MODES and (problem := _why_offline(service)):
        warn(f"{problem}: Weights & Biases logs offline. --disable_wandb True turns it off.")
        mode = "offline"
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "name": name,
        "dir": os.environ.get("WANDB_DIR", str(folder)),
        "config": dict(config),
        "settings": wandb.Settings(
            init_timeout=INIT_SECONDS, login_timeout=INIT_SECONDS, quiet=True
        ),
    }
    try:
        run = wandb.init(mode=mode, **options)
    except Exception as error:  # the service's many ways to fail must not end a run
        said = " ".join(str(error).split())[:120]
        warn(f"Weights & Biases did not answer ({type(error).__name__}: {said}): logging offline.")
        wandb.teardown()
        run = wandb.init(mode="offline", **options)
    if run.settings.mode == "offline":
        note(f"W&B offline run in {run.dir}; upload it later with `wandb sync`.")


def finish_wandb() -> None:
    """Ends the run, if there is one, with everything written."""
    wandb = sys.modules.get("wandb")  # not imported: nothing was started
    if is_main_process() and wandb is not None and wandb.run is not None:
        wandb.finish()


def has_credentials(service: str) -> bool:
    """Whether wandb could log in without asking: a key in the environment or in netrc.

    Args:
        service: The service's URL.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(service).hostname or ""
    return any(_knows(path, host) for path in _netrc_files() if path.is_file())


def _why_offline(service: str) -> str | None:
    if not has_credentials(service):
        return "No key is configured (`wandb login`)"
    # wandb itself retries for half a minute before it says so.
    return None if _reachable(service) else f"{service} cannot be reached"


def _reachable(service: str) -> bool:
    """Whether the service accepts a connection; through a proxy, wandb must find out."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY")):
        return True
    address = urlparse(service)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _netrc_files() -> Sequence[Path]:
    if named := os.environ.get("NETRC"):
        return [Path(named)]
    return [Path.home() / ".netrc", Path.home() / "_netrc"]


def _knows(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False
