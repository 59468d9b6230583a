"""Adapters: put on a model, or compared with one on disk; what does not fit is refused in words.

peft is asked what it can do by letting it try. Whether a fresh adapter left the model as it was is
measured: some ways to begin an adapter (PiSSA, OLoRA, LoftQ, KaSA, …) rewrite the weights under it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.errors import ConfigError, one_line
from moodpo.files import hash_weights
from moodpo.models.probe import gap, probe_logps

__all__ = [
    "FreshAdapter",
    "adapter_differences",
    "adapter_misfits",
    "add_adapter",
    "load_config",
    "other_base",
    "rewrites_base",
    "switched_off",
    "wrap_model",
]

logger = logging.getLogger(__name__)

# Ways to begin an adapter that leave the weights under it alone.
_GENTLE_INITS = (True, False, "gaussian", "eva", "mica", "orthogonal")
# What an adapter computes does not depend on these, or they show in the names of its tensors.
_IMMATERIAL = frozenset(
    (
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "runtime_config", "lora_dropout", "init_lora_weights", "megatron_core"),
        *("target_modules", "exclude_modules", "target_parameters", "modules_to_save"),
        *("layers_to_transform", "layers_pattern", "ensure_weight_tying", "fan_in_fan_out"),
        *("loftq_config", "corda_config", "eva_config", "lora_ga_config", "megatron_config"),
        "velora_config",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshAdapter:
    """How far a fresh adapter moved a model, in nats per token of a probe."""

    on: float
    off: float  # switched off again: above rounding, the weights under it were rewritten


def wrap_model(
    model: nn.Module, peft_config: Any, *, dropout: bool
) -> tuple[nn.Module, FreshAdapter]:
    """Puts a fresh adapter on a whole model.

    Args:
        model: Without an adapter.
        peft_config: Of the adapter.
        dropout: Whether the adapter keeps the dropout that the config asks for.

    Returns:
        The PEFT model, and what the adapter did to the model.

    Raises:
        ConfigError: If the model carries an adapter, or peft cannot put this one on it.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError(
            "The model already carries an adapter, and peft_config asks for another. Pass one of "
            "them."
        )
    if getattr(model, "is_quantized", False):
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    before = probe_logps(model)
    wrapped = add_adapter(model, peft_config, dropout=dropout)
    if not any(parameter.requires_grad for parameter in wrapped.parameters()):
        raise ConfigError(
            "This adapter adapts nothing of this model: none of its target modules or parameters "
            "was found. Pass others (--lora_target_modules), or leave them out."
        )
    on = gap(probe_logps(wrapped), before)
    with switched_off(wrapped):
        off = gap(probe_logps(wrapped), before)
    return wrapped, FreshAdapter(on=on, off=off)


def add_adapter(
    model: nn.Module, peft_config: Any, *, dropout: bool, name: str = "default"
) -> nn.Module:
    """As peft does it, but what peft refuses is refused in words that help.

    Args:
        model: A whole model, or a PEFT model that gets one adapter more.
        peft_config: Copied where it is changed.
        dropout: Whether the adapter keeps its dropout.
        name: Of the adapter.

    Returns:
        The PEFT model.

    Raises:
        ConfigError: If the adapter does not fit the model.
    """
    if not dropout and getattr(peft_config, "lora_dropout", None):
        # Not only unused: adapters of fused experts refuse to be made with it.
        peft_config = copy.copy(peft_config)
        peft_config.lora_dropout = 0.0
    try:
        if hasattr(model, "peft_config"):
            model.add_adapter(name, peft_config)  # type: ignore[operator]
            return model
        from peft import get_peft_model

        wrapped: nn.Module = get_peft_model(model, peft_config, adapter_name=name)
    except (torch.OutOfMemoryError, Warning):
        raise
    except Exception as error:  # of many kinds: ValueError, TypeError, re.error, KeyError, …
        raise ConfigError(_refusal(error)) from error
    return wrapped


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it, a PEFT model's adapters are off, and peft does not warn of what is tried here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers")
        with model.disable_adapter():  # type: ignore[operator]
            yield


def rewrites_base(config: Any) -> str | None:
    """What of an adapter's config changes the weights under it; None where nothing does.

    For adapters that one did not see being made; where one did, `FreshAdapter` knows.
    """
    init = getattr(config, "init_lora_weights", True)
    if init not in _GENTLE_INITS:
        return f"init_lora_weights={init!r}"
    for name in ("kasa_config", "layer_replication"):
        if getattr(config, name, None):
            return name
    return None


def adapter_differences(theirs: Any, ours: Any) -> list[str]:
    """Settings by which two adapters compute differently, as `name: theirs, not ours`.

    Args:
        theirs: The config of an adapter on disk.
        ours: The config of the policy's adapter.
    """
    first, second = theirs.to_dict(), ours.to_dict()
    return [
        f"{name}: it has {_show(first.get(name))}, the policy's has {_show(second.get(name))}"
        for name in sorted((first.keys() | second.keys()) - _IMMATERIAL)
        if (first.get(name) or None) != (second.get(name) or None)
    ]


def other_base(theirs: Any, ours: Any) -> str | None:
    """Says so where two adapters were made for different models; warns where it cannot be known.

    Args:
        theirs: The config of an adapter on disk.
        ours: The config of the policy's adapter.
    """
    first, second = (config.base_model_name_or_path or "" for config in (theirs, ours))
    if first == second or not (first and second):
        return None
    folders = [Path(name) for name in (first, second)]
    if all(folder.is_dir() for folder in folders):
        if folders[0].resolve() == folders[1].resolve():
            return None
        if hash_weights(first) == hash_weights(second):
            return None
        return f"it was trained on {first}, the policy's adapter lies on {second}"
    logger.warning(
        "The reference's adapter was trained on %s and the policy's lies on %s: if these are not "
        "the same model, merge the reference first and pass the full model.",
        first,
        second,
    )
    return None


def adapter_misfits(state: Mapping[str, Tensor], model: nn.Module, name: str) -> list[str]:
    """Where an adapter's tensors on disk are not those of a model's adapter.

    Args:
        state: As `peft.load_peft_weights` gives it.
        model: The PEFT model.
        name: Of its adapter.

    Returns:
        One sentence about missing tensors, surplus ones and other shapes each, where there are any.
    """
    from peft import get_peft_model_state_dict

    ours = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    base = model.get_base_model().state_dict()  # type: ignore[operator]
    # peft saves whole embeddings beside adapters of them: no matter where they are the base's.
    surplus = [key for key in state.keys() - ours.keys() if not _is_of_base(key, state[key], base)]
    shapes = [
        f"{key} is {list(state[key].shape)}, not {list(ours[key].shape)}"
        for key in sorted(state.keys() & ours.keys())
        if state[key].shape != ours[key].shape
    ]
    said = (
        ("it lacks", sorted(ours.keys() - state.keys())),
        ("only it has", sorted(surplus)),
        ("shapes differ:", shapes),
    )
    return [f"{what} {_some(names)}" for what, names in said if names]


def load_config(path: str | Path) -> Any:
    """The config of an adapter on disk.

    Raises:
        ConfigError: If it cannot be read.
    """
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"The adapter at {path} cannot be read: {error!r}.") from error


def _refusal(error: Exception) -> str:
    from moodpo._upstream import adapter_misfit

    said = one_line(error, at_most=400)
    if isinstance(error, adapter_misfit()):
        remedy = "Pass other target_modules (--lora_target_modules), or leave them out."
    elif "lora_dropout" in said:
        remedy = "Pass lora_dropout 0, or disable_dropout True."
    else:
        remedy = "Change the adapter's settings (peft_config, or the --lora_ and --use_ flags)."
    return f"This adapter cannot be put on this model: {said or type(error).__name__}. {remedy}"


def _is_of_base(key: str, value: Tensor, base: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is one of the base model's, value for value."""
    name = key.removeprefix("base_model.model.")
    own = next((base[n] for n in (name, _inside_layer(name)) if n in base), None)
    return own is not None and torch.equal(own.cpu(), value.cpu().to(own.dtype))


def _inside_layer(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return f"{stem}.base_layer.{leaf}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _show(value: Any) -> str:
    return f"{value!r}"[:80]
