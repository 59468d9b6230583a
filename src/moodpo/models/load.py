"""Loading: the model and tokenizer of a policy, whole or not at all, the one way for everyone.

A weight that a folder lacks would be a random one, and transformers and peft only mention it. Here
it is refused. Knows nothing of what a model is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from moodpo._upstream import source_of
from moodpo.errors import ConfigError, one_line
from moodpo.models.find import BASE_REMEDY, PolicyFiles, whole_model
from moodpo.models.merge import merge_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "AdapterUse",
    "as_device",
    "as_dtype",
    "load",
    "load_adapter",
    "load_given",
    "load_model",
    "load_tokenizer",
]

AdapterUse = Literal["merged", "beside", "trainable"]

# We untie before we merge; see `models.merge`.
_TIED = "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"
_OTHER = "Pass a complete adapter, and the model that it was trained on."
_MISSING = "Found missing adapter keys"  # said again, as an error


def load(
    files: PolicyFiles, *, dtype: torch.dtype, device: torch.device, adapter: AdapterUse
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model and the tokenizer of a policy; see `load_model`."""
    return load_model(files, dtype=dtype, device=device, adapter=adapter), load_tokenizer(files)


def load_model(
    files: PolicyFiles,
    *,
    dtype: torch.dtype | str,
    device: torch.device | None = None,
    adapter: AdapterUse | None,
    **options: Any,
) -> Any:
    """The model of a policy, with its adapters.

    Args:
        files: Where its parts are.
        dtype: Of the whole model's weights.
        device: Where it goes; it stays where transformers puts it when None.
        adapter: `merged` into float32 weights, where that changes nothing that is computed, and
            `beside` them otherwise: most of what training changed is smaller than the last bit of
            a bfloat16 weight, and merging would round it away. Both are frozen, in evaluation
            mode. `trainable`, where a model without adapters is left to be trained, too. None
            leaves the adapters out.
        **options: Of `from_pretrained`.

    Raises:
        ConfigError: If a part cannot be loaded, or lacks weights that its config.json asks for.
    """
    model = _load_unmerged(files, dtype, device, adapter, options)
    if adapter == "trainable":
        return model
    exact = dtype == torch.float32 and not getattr(model, "is_quantized", False)
    if files.adapters and adapter == "merged" and exact:
        model = merge_adapter(model) or _load_unmerged(files, dtype, device, adapter, options)
    return model.requires_grad_(False).eval()


def load_tokenizer(files: PolicyFiles) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy.

    Raises:
        ConfigError: If there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(files.tokenizer)
    except Exception as error:  # whatever a damaged or foreign folder makes libraries raise
        raise ConfigError(_cannot(f"The tokenizer of {files.tokenizer}", error, "")) from error


def load_given(
    model: str | nn.Module, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model to be trained and its tokenizer, each loaded only where it is not given.

    Args:
        model: The model, or its folder or Hub id: it is then loaded in float32.
        tokenizer: The model's own when None.

    Raises:
        ConfigError: If one of them cannot be loaded.
    """
    loaded: Any = model
    if isinstance(model, str):
        loaded = load_model(whole_model(model), dtype=torch.float32, adapter="trainable")
    if tokenizer is None:
        source = source_of(loaded)
        if source is None:
            raise ConfigError(
                f"{type(loaded).__name__} does not say what it was loaded from, so its tokenizer "
                "is unknown. Pass processing_class."
            )
        tokenizer = load_tokenizer(whole_model(source))
    return loaded, tokenizer


def load_adapter(
    model: Any, path: str | Path, *, name: str = "default", trainable: bool = False
) -> Any:
    """Puts a saved adapter on a model, every weight of it.

    Args:
        model: The base model, or a PEFT model that gets a further adapter.
        path: The adapter's folder.
        name: Of the adapter.
        trainable: Whether it is to be trained on.

    Returns:
        The PEFT model.

    Raises:
        ConfigError: If the adapter cannot be loaded, does not fit the model, or lacks weights.
    """
    from peft import PeftModel

    folder = str(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_TIED)
            warnings.filterwarnings("ignore", message=_MISSING)
            if not hasattr(model, "peft_config"):
                model = PeftModel.from_pretrained(
                    model, folder, adapter_name=name, is_trainable=trainable
                )
            # The second time only weights are read, and it is said which.
            found = model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a damaged or foreign folder makes libraries raise
        where = source_of(model)
        on = f" on {where}" if where else ""
        raise ConfigError(_cannot(f"The adapter {folder}", error, _OTHER, on=on)) from error
    _refuse_odd_keys(folder, found.missing_keys, "are missing, and would be random")
    _refuse_odd_keys(folder, found.unexpected_keys, "have no place in the model")
    return model


def as_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for; the first accelerator, else the CPU, when None."""
    if device is not None:
        return torch.device(device)
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def as_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The type of weights that was asked for; when None float32 on a CPU, bfloat16 elsewhere.

    Raises:
        ConfigError: If it is no type of weights.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"Unknown dtype {dtype!r}. Use float32, bfloat16 or float16.")
    return found


def _load_unmerged(
    files: PolicyFiles,
    dtype: torch.dtype | str,
    device: torch.device | None,
    adapter: AdapterUse | None,
    options: dict[str, Any],
) -> Any:
    model = _load_whole(
        files.model, BASE_REMEDY if files.adapters else "", {"dtype": dtype, **options}
    )
    if device is not None:
        model = model.to(device)
    trainable = adapter == "trainable"
    if files.adapters and trainable and getattr(model, "is_quantized", False):
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for name, folder in files.adapters.items() if adapter is not None else ():
        model = load_adapter(model, folder, name=name, trainable=trainable)
    return model


def _load_whole(path: str, remedy: str, options: dict[str, Any]) -> Any:
    """`AutoModelForCausalLM.from_pretrained` of a checkpoint that holds every weight."""
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, **options
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a damaged or foreign folder makes libraries raise
        raise ConfigError(_cannot(path, error, remedy)) from error
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{path} does not hold what its config.json says: {len(missing)} weights are missing, "
            f"such as {missing[0]}, and would be random. Restore the folder, or correct "
            f"config.json. {remedy}".rstrip()
        )
    return model


def _refuse_odd_keys(folder: str, keys: Sequence[str], what: str) -> None:
    if keys:
        raise ConfigError(
            f"The adapter {folder} does not fit: {len(keys)} weights {what}, such as {keys[0]}. "
            f"{_OTHER}"
        )


def _cannot(what: str, error: Exception, remedy: str, *, on: str = "") -> str:
    said = one_line(error, at_most=300)
    return f"{what} cannot be loaded{on}: {type(error).__name__}: {said}. {remedy}".rstrip()
