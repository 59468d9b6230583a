"""Settings of `moodpo train`: which flags exist, and what a command line says, before torch loads.

Every source of settings becomes arguments of one parser; later ones win: the embedded default, the
task's defaults, the `--config` file, the command line. The Trainer's own flags are kept as
arguments until `training_config` is asked to read them: reading them imports torch.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moodpo._upstream import ModelConfig, training_argument_names
from moodpo.cli.flags import (
    Flag,
    FlagSet,
    flags_of,
    format_help,
    read_config_file,
    refuse_unknown,
    to_arguments,
)
from moodpo.errors import ConfigError
from moodpo.recipes import EMBEDDED, TASKS, get_task
from moodpo.training.settings import Settings

if TYPE_CHECKING:
    from moodpo.training.config import MOODPOConfig

__all__ = ["ModelFlags", "RunFlags", "TrainSettings", "read_settings", "train_help"]

ROOMS = {
    "run": "run",
    "data": "data",
    "model": "model and LoRA",
    "rewards": "rewards",
    "weights": "weights",
    "rollout": "rollout",
    "loss": "loss",
    "logs": "logs",
    "trainer": "trainer (transformers.TrainingArguments)",
}
_DESCRIPTION = (
    "Trains one policy for every weighting of several rewards. Without --sft_model_path, "
    "--csv_path and --reward_models it trains the embedded model on embedded prompts, offline. "
    "Boolean flags take True or False."
)
_OWN_BATCH_SIZE = "per_device_train_batch_size"


def _flag(room: str, default: Any, help_text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help_text, "room": room, **metadata})


@dataclass(frozen=True)
class RunFlags:
    """Flags of a training run that are neither the Trainer's nor the model's."""

    wandb_name: str | None = _flag("run", None, "Name of the run in Weights & Biases.")
    disable_wandb: bool = _flag(
        "run", False, "Log no run to Weights & Biases. Without wandb installed nothing is logged."
    )
    exp_type: str = _flag(
        "run", "assistant", "The task: its prompt frame and lengths.", choices=tuple(TASKS)
    )
    output_dir: str | None = _flag(
        "run",
        None,
        "Where everything is written. Default: outputs/ and --wandb_name or else --exp_type; "
        "outputs/default of the embedded default.",
    )
    overwrite: bool = _flag(
        "run", False, "Replace the run that output_dir holds; its checkpoints are deleted."
    )
    resume_from_checkpoint: str | None = _flag(
        "run",
        None,
        "Continue an interrupted run exactly: a checkpoint, or True for output_dir's last.",
    )
    batch_size: int | None = _flag(
        "run", None, "Prompts per device and pass: another name of --per_device_train_batch_size."
    )
    sweep_weights: int = _flag(
        "run",
        0,
        "After training, sweep so many weights per objective on held-out prompts; 0 does not.",
    )
    sweep_prompts: int = _flag("run", 64, "Held-out prompts of that sweep.")

    csv_path: str | None = _flag(
        "data",
        None,
        "Prompts: a .csv, .jsonl, .json or .parquet file, a Hub dataset, or `embedded`.",
    )
    prompt_column: str = _flag("data", "prompt", "Column that holds the prompts.")
    eval_csv_path: str | None = _flag(
        "data", None, "Held-out prompts, for --eval_strategy and --sweep_weights."
    )
    dataset_split: str = _flag("data", "train", "Split of a Hub dataset.")
    max_samples: int | None = _flag("data", None, "Use only so many prompts, from the first.")

    sft_model_path: str | None = _flag(
        "model", None, "The policy before training: a folder, a Hub id, or `embedded`."
    )
    model_path: str | None = _flag(
        "model",
        None,
        "Checkpoint of an earlier iteration to start from, with a fresh optimizer.",
    )

    reward_models: list[str] | None = field(
        default=None,
        metadata={
            "help": "Two or more: names (`moodpo rewards` lists them), folders, Hub ids, or "
            "package.module:function; NAME=SPEC renames.",
            "room": "rewards",
        },
    )


@dataclass
class ModelFlags(ModelConfig):  # type: ignore[misc]
    """TRL's model flags with this method's defaults."""

    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Type of the base weights. Default: bfloat16 under LoRA with --bf16, else "
            "float32.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    use_peft: bool = field(
        default=True, metadata={"help": "Train a LoRA adapter; False trains all weights."}
    )
    lora_r: int = field(default=64, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=128, metadata={"help": "Scale of the adapter, times 1/r."})
    lora_dropout: float = field(
        default=0.05,
        metadata={"help": "Dropout of the adapter; counts with --disable_dropout False only."},
    )
    lora_target_modules: list[str] | None = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "Modules that get an adapter: names, or all-linear."},
    )
    lora_layers_to_transform: list[int] | None = field(
        default=None,
        metadata={
            "help": "Blocks that get an adapter, counted from 0; needs module names in "
            "--lora_target_modules. Upper blocks alone make the backward pass shorter."
        },
    )

    def __post_init__(self) -> None:
        """As TRL's, but a single module's name stays a name.

        TRL makes a text of a list of one, which peft reads as a pattern of whole paths: right for
        `all-linear` and for patterns, while `q_proj` would match nothing.
        """
        super().__post_init__()
        named: Any = self.lora_target_modules
        if isinstance(named, str) and re.fullmatch(r"[\w.]+", named):
            self.lora_target_modules = [named]


_UNUSED_MODEL_FLAGS = ("model_name_or_path", "lora_task_type")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What a command line asks for.

    Attributes:
        run: Our own flags.
        model: Model and LoRA flags.
        given: Names of all flags that the user gave, in the file or on the command line.
        embedded: Whether this is the embedded default.
        trainer_arguments: All other arguments, for `training_config`.
    """

    run: RunFlags
    model: ModelFlags
    given: frozenset[str]
    embedded: bool
    trainer_arguments: tuple[str, ...]

    @property
    def output_dir(self) -> Path:
        """Where everything is written."""
        name = self.run.wandb_name or self.run.exp_type
        return Path(self.run.output_dir or f"outputs/{name}").expanduser()

    def training_config(self, **computed: Any) -> MOODPOConfig:
        """The Trainer's settings; imports torch.

        Args:
            **computed: Settings that follow from others; what the user gave wins over them.

        Raises:
            ConfigError: On values that cannot work.
        """
        from moodpo.training.config import MOODPOConfig

        flag_set = FlagSet(_trainer_flags())
        values, rest = flag_set.parse(self.trainer_arguments)
        _refuse_rest(rest)
        try:
            return MOODPOConfig(output_dir=str(self.output_dir), **{**computed, **values})
        except ConfigError:
            raise
        except (ValueError, ImportError) as error:
            raise ConfigError(" ".join(str(error).split())) from error


def read_settings(argv: Sequence[str]) -> TrainSettings:
    """Reads a command line, and the `--config` file that it names.

    Args:
        argv: Arguments after `moodpo train`.

    Raises:
        ConfigError: On unknown flags, wrong types, or flags that contradict each other.
    """
    config, typed = _config_arguments(argv)
    user = [*config, *typed]
    light = FlagSet(_light_flags())
    given, rest = light.parse(user)
    refuse_unknown([a for a in rest if a.startswith("--")], _all_names())
    embedded = not {"sft_model_path", "csv_path", "reward_models"} & given.keys()
    task = get_task(given.get("exp_type", EMBEDDED.get("exp_type", "assistant")))
    defaults = [*to_arguments(EMBEDDED if embedded else {}), *to_arguments(task.defaults)]
    values, trainer_arguments = light.parse([*defaults, *user])
    size = _batch_size(values.pop("batch_size", None), rest)
    trainer_arguments += to_arguments({_OWN_BATCH_SIZE: size})
    names = {f.name for f in fields(RunFlags)}
    return TrainSettings(
        run=RunFlags(**{n: v for n, v in values.items() if n in names}),
        model=_model_flags({n: v for n, v in values.items() if n not in names}),
        given=frozenset(given) | _names_of(rest),
        embedded=embedded,
        trainer_arguments=tuple(trainer_arguments),
    )


def train_help() -> str:
    """The help of `moodpo train`, by room; imports torch for the Trainer's flags."""
    flags = [*_light_flags(), *map(_as_computed, _trainer_flags())]
    flags.append(Flag(name="config", room="run", type=str, default=None, help=_CONFIG_HELP))
    return format_help(
        "usage: moodpo train [--FLAG VALUE …]", _DESCRIPTION, flags, ROOMS, brief="trainer"
    )


# What a command line computes where the user says nothing: the dataclass's own default is another.
_COMPUTED = {
    "report_to": ("Trackers to log to, or none.", "wandb where it is installed"),
    "run_name": ("Name of the run at the trackers.", "--wandb_name"),
    "project": ("Name of the project at the trackers.", "moodpo"),
    "use_cpu": ("Use the CPU.", "True where there is no accelerator"),
    "bf16": ("Mixed precision in bfloat16.", "False; embedded, True where hardware has it"),
}


def _as_computed(flag: Flag) -> Flag:
    """A Trainer's flag with the default that a command line gives it."""
    if flag.name not in _COMPUTED:
        return flag
    text, default = _COMPUTED[flag.name]
    return replace(flag, help=text, default=default)


_CONFIG_HELP = "YAML file of these flags, without dashes; the command line wins over it."


def _config_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of the config file, and the typed ones without `--config`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    try:
        known, typed = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:
        raise ConfigError("--config expects a YAML file. See `moodpo train --help`.") from None
    if known.config is None:
        return [], typed
    content = read_config_file(known.config)
    refuse_unknown(content, _all_names(), origin=known.config)
    return to_arguments(content), typed


def _batch_size(alias: int | None, user: Sequence[str]) -> int | None:
    """The value of `--batch_size`, which must not contradict the flag that it stands for."""
    if alias is None:
        return None
    flag = Flag(name=_OWN_BATCH_SIZE, room="", type=int, default=None, help="")
    own = FlagSet([flag]).parse(user)[0].get(_OWN_BATCH_SIZE, alias)
    if own != alias:
        raise ConfigError(
            f"--batch_size {alias} and --{_OWN_BATCH_SIZE} {own} are two names of one setting. "
            "Pass one of them."
        )
    return alias


def _model_flags(values: dict[str, Any]) -> ModelFlags:
    try:
        flags = ModelFlags(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name, low, high in (("lora_r", 1, None), ("lora_alpha", 1, None), ("lora_dropout", 0, 1)):
        value = getattr(flags, name)
        if not low <= value or (high is not None and value >= high):
            upper = "" if high is None else f" and below {high}"
            raise ConfigError(f"{name} must be at least {low}{upper}; got {value}.")
    return flags


def _light_flags() -> list[Flag]:
    model = flags_of(ModelFlags, room=lambda _: "model", skip=_UNUSED_MODEL_FLAGS)
    return [*flags_of(RunFlags, room=lambda f: f.metadata["room"]), *model]


def _trainer_flags() -> list[Flag]:
    from moodpo.training.config import MOODPOConfig

    taken = [flag.name for flag in _light_flags()]
    return flags_of(MOODPOConfig, room=lambda f: f.metadata.get("room", "trainer"), skip=taken)


@cache
def _all_names() -> frozenset[str]:
    """Names of all flags."""
    own = frozenset(f.name for f in fields(Settings))
    return frozenset(flag.name for flag in _light_flags()) | own | training_argument_names()


def _names_of(arguments: Sequence[str]) -> frozenset[str]:
    flags = [a for a in arguments if a.startswith("--")]
    return frozenset(a.lstrip("-").partition("=")[0].replace("-", "_") for a in flags)


def _refuse_rest(rest: Sequence[str]) -> None:
    if rest:
        refuse_unknown([a for a in rest if a.startswith("--")], _all_names())
        raise ConfigError(f"Unexpected argument {rest[0]!r}. Flags start with --.")
