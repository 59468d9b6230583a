"""Loading: causal language models and adapters, whole or not at all.

A weight that a folder lacks would be a random one, and transformers and peft only mention it. Here
it is refused. Knows nothing of what a model is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moodpo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["load_adapter", "load_model"]

# We untie before we merge; see `models.export`.
_TIED = "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter"
_OTHER = "Pass a complete adapter, and the model that it was trained on."
_MISSING = "Found missing adapter keys"  # said again, as an error


def load_model(path: str, *, remedy: str = "", **options: Any) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained` of a checkpoint that holds every weight.

    Args:
        path: Folder or Hub id.
        remedy: A sentence for messages: what else to pass.
        **options: Of `from_pretrained`.

    Raises:
        ConfigError: If it cannot be loaded, or lacks weights that its config.json asks for.
    """
    import torch
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
    import torch
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
        where = getattr(getattr(model, "config", None), "_name_or_path", None)
        on = f" on {where}" if where else ""
        raise ConfigError(_cannot(f"The adapter {folder}", error, _OTHER, on=on)) from error
    _refuse_odd_keys(folder, found.missing_keys, "are missing, and would be random")
    _refuse_odd_keys(folder, found.unexpected_keys, "have no place in the model")
    return model


def _refuse_odd_keys(folder: str, keys: Sequence[str], what: str) -> None:
    if keys:
        raise ConfigError(
            f"The adapter {folder} does not fit: {len(keys)} weights {what}, such as {keys[0]}. "
            f"{_OTHER}"
        )


def _cannot(what: str, error: Exception, remedy: str, *, on: str = "") -> str:
    said = " ".join(str(error).split())[:300].rstrip(".")
    return f"{what} cannot be loaded{on}: {type(error).__name__}: {said}. {remedy}".rstrip()
