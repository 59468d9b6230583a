"""Models of a run: what is loaded as the policy, and what it is held close to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moodpo._upstream import peft_config, quantization_config
from moodpo.cli.console import warn
from moodpo.cli.settings import TrainSettings
from moodpo.errors import ConfigError
from moodpo.models.find import PolicyFiles, recorded_base, same_model
from moodpo.models.load import load_model

if TYPE_CHECKING:
    from moodpo.training.config import MOODPOConfig

__all__ = ["TrainedModel", "load_policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """What the trainer is given."""

    model: Any
    peft_config: Any  # None where the model carries its adapter already, or is trained in full
    ref_model: Any  # None where the trainer can make the reference itself
    base: str  # what lies under the adapter, or was there before training


def load_policy(
    settings: TrainSettings, source: PolicyFiles, start: PolicyFiles | None, args: MOODPOConfig
) -> TrainedModel:
    """Loads the policy as training starts.

    Args:
        settings: As read.
        source: The SFT model.
        start: An earlier iteration's checkpoint, if any.
        args: The Trainer's settings.

    Raises:
        ConfigError: If the checkpoint does not fit the model or the flags.
    """
    if start is not None and start.adapter is not None:
        _check_adapter_flags(settings, start)
        _warn_of_other_base(source, start)
        model = _load(settings, start, args, lora=True)
        return TrainedModel(model=model, peft_config=None, ref_model=None, base=source.path)
    lora = settings.model.use_peft
    config = _adapter_config(settings)
    if start is None:
        model = _load(settings, source, args, lora=lora)
        return TrainedModel(model=model, peft_config=config, ref_model=None, base=source.path)
    model = _load(settings, start, args, lora=lora)
    if not lora:
        return TrainedModel(model=model, peft_config=None, ref_model=None, base=source.path)
    # A fresh adapter on the earlier iteration's whole model: switching it off gives that model,
    # so the SFT model must be a reference of its own.
    reference = None
    if args.reference == "base":
        reference = _load(settings, source, args, lora=True)
    return TrainedModel(model=model, peft_config=config, ref_model=reference, base=start.path)


def _adapter_config(settings: TrainSettings) -> Any:
    try:
        return peft_config(settings.model)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _load(settings: TrainSettings, files: PolicyFiles, args: MOODPOConfig, *, lora: bool) -> Any:
    flags = settings.model
    dtype = flags.dtype or ("bfloat16" if lora and args.bf16 else "float32")
    options: dict[str, Any] = {}
    if (quantization := quantization_config(replace(flags, dtype=dtype))) is not None:
        options["quantization_config"] = quantization
        options["device_map"] = (
            {"": args.local_process_index} if torch.cuda.is_available() else None
        )
    if flags.attn_implementation is not None:
        options["attn_implementation"] = flags.attn_implementation
    if not Path(files.model).is_dir():
        options["revision"] = flags.model_revision
    return load_model(files, dtype=dtype, adapter="trainable", **options)


def _warn_of_other_base(source: PolicyFiles, start: PolicyFiles) -> None:
    trained_on = recorded_base(start.manifest)
    if trained_on and not same_model(trained_on, source.path):
        warn(f"the adapter {start.path} was trained on {trained_on}, not on {source.path}.")


def _check_adapter_flags(settings: TrainSettings, start: PolicyFiles) -> None:
    """An adapter keeps its shape: flags that ask for another one are refused."""
    from peft import LoraConfig, PeftConfig

    config = PeftConfig.from_pretrained(start.path)
    if not settings.model.use_peft:
        raise ConfigError(
            f"--model_path {start.path} is an adapter, and --use_peft False trains all weights. "
            "Merge it first (`moodpo export`), or train the adapter."
        )
    shapes = {"lora_r": "r", "lora_alpha": "lora_alpha", "use_dora": "use_dora"}
    for flag in settings.given & shapes.keys():
        asked, has = getattr(settings.model, flag), getattr(config, shapes[flag], None)
        if isinstance(config, LoraConfig) and asked != has:
            raise ConfigError(
                f"--{flag} {asked}: the adapter {start.path} has {has} and keeps it. Drop the flag."
            )
