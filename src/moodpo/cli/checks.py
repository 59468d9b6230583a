"""Checks: what can be refused before anything heavy is imported or loaded.

Reads names, folders and small JSON files; imports no torch. Knows nothing of training.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from moodpo.cli.console import is_main_process, warn
from moodpo.cli.settings import TrainSettings
from moodpo.data.lengths import max_positions
from moodpo.errors import ConfigError, MissingDependencyError
from moodpo.files import looks_local
from moodpo.manifest import MANIFEST_NAME, RunManifest, check_continuation
from moodpo.models.find import EMBEDDED_NAME, find_hub_file, locate_base
from moodpo.rewards import check_reward_specs
from moodpo.rewards.specs import parse_spec
from moodpo.training.checkpoints import checkpoints_in, find_checkpoint, has_weights
from moodpo.training.settings import check_ranges, ranges

__all__ = [
    "ModelSource",
    "Start",
    "check_numbers",
    "check_output",
    "check_reference",
    "check_settings",
    "clear_output",
    "find_start",
    "objective_names",
    "resolve_model",
    "resume_checkpoint",
]

ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_RUN_FILES = (MANIFEST_NAME, "metrics.jsonl", "completions.jsonl", "trainer_state.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A whole model: where it is, and what its `config.json` says."""

    path: str  # folder or Hub id
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_positions(self) -> int | None:
        """Tokens the model can attend to, where its config says so."""
        return max_positions(self.config)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """An earlier iteration's checkpoint, from which a run starts."""

    path: str
    is_adapter: bool
    manifest: RunManifest | None  # None for weights that moodpo did not train


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


def resolve_model(path: str, *, flag: str = "--sft_model_path") -> ModelSource:
    """Finds a whole causal language model without loading it.

    Args:
        path: A folder, a Hub id, or `embedded`.
        flag: What the user called it, for messages.

    Raises:
        ConfigError: If there is none, or it is something else.
    """
    if path == EMBEDDED_NAME:
        path = locate_base(path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_model_folder(folder, flag)
        source = ModelSource(path=os.path.abspath(folder), config=_read_json(folder / MODEL_CONFIG))
    elif looks_local(path):
        raise ConfigError(
            f"{flag} {path} does not exist. Pass a model folder, a Hub id (owner/name), or "
            "`embedded`."
        )
    else:
        source = ModelSource(path=path, config=_hub_config(path, flag))
    _check_architecture(source, flag)
    return source


def find_start(settings: TrainSettings) -> Start | None:
    """The checkpoint that `--model_path` names, checked against this run's objectives.

    Raises:
        ConfigError: If there is no checkpoint.
        ManifestError: If it was trained for other objectives.
    """
    path = settings.run.model_path
    if path is None:
        return None
    folder = Path(path).expanduser()
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (folder / MODEL_CONFIG).is_file():
        raise ConfigError(f"--model_path {path} {_missing_checkpoint(folder)}")
    if not has_weights(folder):
        raise ConfigError(f"--model_path {path} has no weights. Pass a complete checkpoint.")
    place = os.path.abspath(folder)  # it is recorded, and read from other folders
    if not (folder / MANIFEST_NAME).is_file():
        return Start(path=place, is_adapter=is_adapter, manifest=None)
    manifest = RunManifest.load(folder)
    _check_objectives(manifest, settings, str(folder))
    return Start(path=place, is_adapter=is_adapter, manifest=manifest)


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
    if resume is not None or not _holds_run(folder):
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
    folder = settings.output_dir
    if not settings.run.overwrite or not is_main_process() or not _holds_run(folder):
        return
    for checkpoint in checkpoints_in(folder):
        shutil.rmtree(checkpoint)
    for name in _RUN_FILES:
        (folder / name).unlink(missing_ok=True)


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


def check_reference(reference: str) -> None:
    """Refuses a reference that is neither a checkpoint here nor a Hub id.

    Raises:
        ConfigError: If it cannot be one.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in (ADAPTER_CONFIG, MODEL_CONFIG)):
            raise ConfigError(f"--reference {reference} {_missing_checkpoint(folder)}")
    elif looks_local(reference) or "/" not in reference:
        raise ConfigError(
            f"--reference {reference} is neither base nor initial, nor a folder or Hub id. Pass "
            "one of them."
        )


# --- models ---------------------------------------------------------------------------------


def _check_model_folder(folder: Path, flag: str) -> None:
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / MODEL_CONFIG).is_file():
        base = _read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "BASE"
        raise ConfigError(
            f"{flag} {folder} is a LoRA adapter, not a whole model. Pass --sft_model_path {base} "
            f"--model_path {folder}."
        )
    if not (folder / MODEL_CONFIG).is_file() or not has_weights(folder):
        raise ConfigError(
            f"{flag} {folder} holds no model ({MODEL_CONFIG} and *.safetensors). Pass the folder "
            "that save_pretrained wrote."
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(
            f"{flag} {folder} holds no tokenizer. Save it there too: tokenizer.save_pretrained."
        )


def _check_architecture(source: ModelSource, flag: str) -> None:
    architectures = list(source.config.get("architectures") or ())
    if any("SequenceClassification" in name for name in architectures):
        raise ConfigError(
            f"{flag} {source.path} is a classifier ({', '.join(architectures)}), not a language "
            "model. Pass it as one of --reward_models."
        )


def _hub_config(path: str, flag: str) -> dict[str, Any]:
    try:
        found = find_hub_file(path, MODEL_CONFIG)
    except Exception as error:  # whatever the HTTP library raises
        said = " ".join(str(error).split())[:160].rstrip(".")
        raise ConfigError(
            f"{flag} {path}: no such folder here, and the Hub gave no model of that name "
            f"({type(error).__name__}: {said}). Check the spelling, the network and "
            "`hf auth login`."
        ) from error
    if found is None:
        raise ConfigError(f"{flag} {path} on the Hub holds no whole model. Pass another id.")
    return _read_json(found)


def _missing_checkpoint(folder: Path) -> str:
    if not folder.exists():
        return "does not exist. Pass a checkpoint folder such as outputs/iter1/checkpoint-500."
    inside = checkpoints_in(folder)
    hint = f" Did you mean {inside[-1]}?" if inside else ""
    return f"is no checkpoint: it has neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}.{hint}"


def _check_quantization(settings: TrainSettings) -> None:
    if not settings.model.use_peft:
        raise ConfigError("Quantized weights cannot be trained in full. Pass --use_peft True.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError("pip install bitsandbytes")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Restore the file.") from None
    return content if isinstance(content, dict) else {}


# --- runs -----------------------------------------------------------------------------------


def _check_objectives(previous: RunManifest, settings: TrainSettings, source: str) -> None:
    """Of a continuation: same objectives, same order. The conditioning is checked later."""
    names = objective_names(settings.run.reward_models or ())
    check_continuation(previous, replace(previous, objectives=names), source=source)


def _holds_run(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() or bool(checkpoints_in(folder))
