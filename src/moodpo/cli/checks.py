"""Checks of `moodpo train`: which flags are refused before anything heavy is imported or loaded.

What a folder must hold is said in `models.find` and `training.checkpoints`. Imports no torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from moodpo.cli.console import is_main_process, warn
from moodpo.cli.settings import TrainSettings
from moodpo.errors import ConfigError, MissingDependencyError
from moodpo.manifest import RunManifest, check_continuation
from moodpo.models import find
from moodpo.models.find import PolicyFiles
from moodpo.rewards import check_reward_specs
from moodpo.rewards.specs import parse_spec
from moodpo.training.checkpoints import delete_run, find_checkpoint, holds_run
from moodpo.training.settings import check_ranges, ranges

__all__ = [
    "check_numbers",
    "check_output",
    "check_settings",
    "clear_output",
    "find_start",
    "objective_names",
    "resume_checkpoint",
]


def check_settings(settings: TrainSettings) -> None:
    """Refuses flags that are missing, cannot work together, or name no rewards.

    Args:
        settings: As read.

    Raises:
        InputError: Saying what to pass instead.
        MissingDependencyError: If a flag needs a package that is not installed.
    """
    run, model = settings.run, settings.model
    needed = ("sft_model_path", "csv_path", "reward_models")
    if missing := [f"--{name}" for name in needed if getattr(run, name) is None]:
        raise ConfigError(
            f"Missing: {', '.join(missing)}. Pass --sft_model_path, --csv_path and "
            "--reward_models (`embedded` stands for the embedded model or prompts), or none of "
            "them for the embedded default."
        )
    if run.output_dir is not None and not run.output_dir.strip():
        raise ConfigError("--output_dir is empty. Pass a folder, or leave the flag out.")
    check_reward_specs(run.reward_models or ())
    if model.load_in_4bit or model.load_in_8bit:
        _check_quantization(settings)
    if run.sweep_weights and run.sweep_weights < 2:
        raise ConfigError(f"sweep_weights must be 0 or at least 2; got {run.sweep_weights}.")
    if run.sweep_weights and run.sweep_prompts < 1:
        raise ConfigError(f"sweep_prompts must be at least 1; got {run.sweep_prompts}.")
    if run.sweep_weights and run.eval_csv_path is None:
        raise ConfigError("--sweep_weights needs held-out prompts. Pass --eval_csv_path.")


def objective_names(specs: Sequence[str]) -> tuple[str, ...]:
    """The objectives that reward specs stand for, in order."""
    return tuple(parse_spec(spec).name for spec in specs)


def find_start(settings: TrainSettings, source: PolicyFiles) -> PolicyFiles | None:
    """The checkpoint that `--model_path` names, checked against this run's objectives.

    Args:
        settings: As read.
        source: The SFT model.

    Raises:
        ConfigError: If there is no checkpoint.
        ManifestError: If it was trained for other objectives.
    """
    if settings.run.model_path is None:
        return None
    start = find.find_start(settings.run.model_path, model=source, flag="--model_path")
    if start.manifest is not None:
        _check_objectives(start.manifest, settings, start.path)
    return start


def resume_checkpoint(settings: TrainSettings) -> str | None:
    """The checkpoint to continue from, complete and of this run; None for a fresh start.

    Raises:
        ConfigError: If there is none that can be continued exactly.
        ManifestError: If it is of a run with other objectives.
    """
    asked = settings.run.resume_from_checkpoint
    if asked is None or asked.lower() in ("false", "no", "0"):
        return None
    newest = asked.lower() in ("true", "yes", "1")
    found = find_checkpoint(True if newest else asked, settings.output_dir, warn=warn)
    manifest = RunManifest.load(found)
    _check_objectives(manifest, settings, str(found))
    if (start := manifest.base_model.get("start")) and settings.run.model_path is None:
        raise ConfigError(f"{found} is of a run that started from --model_path {start}. Pass it.")
    return str(found)


def check_output(settings: TrainSettings, resume: str | None) -> None:
    """Refuses to write over another run, unless `--overwrite True` says so.

    Args:
        settings: As read.
        resume: The checkpoint that is continued, if any.

    Raises:
        ConfigError: If output_dir holds a run and neither resuming nor overwriting was asked for.
    """
    folder = settings.output_dir
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder} is a file. Pass a folder.")
    if resume is not None or not holds_run(folder):
        return
    if not settings.run.overwrite:
        raise ConfigError(
            f"--output_dir {folder} holds a run already. Pass another folder, "
            "--resume_from_checkpoint True to continue it, or --overwrite True to replace it."
        )
    start = settings.run.model_path
    if start and Path(start).expanduser().resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--overwrite True would delete --model_path {start}. Pass another --output_dir."
        )


def clear_output(settings: TrainSettings) -> None:
    """Deletes the run that `--overwrite True` replaces, so that nothing of it is taken for ours.

    Only what a run writes is deleted, and only from a folder that holds one.
    """
    if settings.run.overwrite and is_main_process():
        delete_run(settings.output_dir)


def check_numbers(arguments: Sequence[str]) -> dict[str, float]:
    """Refuses numbers out of their range, before the Trainer's own parser is imported.

    Args:
        arguments: `--FLAG VALUE` or `--FLAG=VALUE`; of a repeated flag the last counts.

    Returns:
        The numbers found, by name. What is no number is left to the parser to refuse.

    Raises:
        ConfigError: Naming the first number out of its range.
    """
    found: dict[str, float] = {}
    known = ranges()
    for argument, following in pairwise([*arguments, ""]):
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in known:
            with suppress(ValueError):
                number = float(value or following)
                found[name] = int(number) if number.is_integer() else number
    check_ranges(found)
    return found


def _check_quantization(settings: TrainSettings) -> None:
    if not settings.model.use_peft:
        raise ConfigError("Quantized weights cannot be trained in full. Pass --use_peft True.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError("pip install bitsandbytes")


def _check_objectives(previous: RunManifest, settings: TrainSettings, source: str) -> None:
    """Of a continuation: same objectives, same order. The conditioning is checked later."""
    names = objective_names(settings.run.reward_models or ())
    check_continuation(previous, replace(previous, objectives=names), source=source)
