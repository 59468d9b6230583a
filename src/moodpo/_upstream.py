"""Upstream: the only door to names of TRL and transformers that may move between releases.

Nothing here imports torch by being imported; what needs it does so inside its function. Each name
is pinned by `tests/test_upstream.py`, so that a release that moves one fails there first. What is
touched elsewhere, because it is used nowhere else, stands in a table there.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers import HfArgumentParser
from trl import ModelConfig

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "HfArgumentParser",
    "ModelConfig",
    "adapter_misfit",
    "lora_layers",
    "peft_config",
    "quantization_config",
    "source_of",
    "template_error",
    "training_argument_names",
]


def peft_config(model: ModelConfig) -> PeftConfig | None:
    """The LoRA settings of a `ModelConfig`; None when it says `use_peft=False`.

    Args:
        model: The settings; our `lora_layers_to_transform` counts where it has one.

    Raises:
        ValueError: If blocks are chosen but no module names, which peft would ignore.
    """
    from trl import get_peft_config

    config = get_peft_config(model)
    layers = getattr(model, "lora_layers_to_transform", None)
    if config is None or layers is None:
        return config
    if isinstance(config.target_modules, str):
        raise ValueError(
            "lora_layers_to_transform needs module names, and lora_target_modules is "
            f"{config.target_modules!r}. Name them, as in --lora_target_modules q_proj v_proj."
        )
    config.layers_to_transform = list(layers)
    return config


def adapter_misfit() -> type[Exception]:
    """What peft raises when an adapter's target modules are not in the model."""
    from peft.utils import NoMatchingPeftModuleError

    misfit: type[Exception] = NoMatchingPeftModuleError
    return misfit


def source_of(model: Any) -> str | None:
    """The folder or Hub id that a model was loaded from, where it says."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def template_error() -> type[Exception]:
    """What a chat template raises, by itself or where it is malformed."""
    from jinja2 import TemplateError

    return TemplateError


def lora_layers(model: Any) -> list[Any]:
    """The LoRA linear layers of a PEFT model; none of any other."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.lora.layer import Linear

    return [module for module in model.modules() if type(module) is Linear]


def quantization_config(model: ModelConfig) -> Any:
    """The bitsandbytes settings of a `ModelConfig`; None when it asks for no quantization."""
    from trl import get_quantization_config

    return get_quantization_config(model)


def training_argument_names() -> frozenset[str]:
    """Names of all `TrainingArguments` flags, read from its source: importing it imports torch."""
    source = Path(transformers.__file__).parent / "training_args.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (body,) = [
        node.body
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    ]
    return frozenset(
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and "ClassVar" not in ast.unparse(node.annotation)
    )
