"""Savable: what a run needs at its end, tried at its start.

Configurations and tokenizer are written into a temporary folder; weights are not.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.errors import ConfigError, DivergenceError
from moodpo.files import ADAPTER_CONFIG, hash_weights, write_json
from moodpo.models.embedded import POLICY_PACKAGE, is_embedded, recorded_name
from moodpo.models.find import PolicyFiles

__all__ = [
    "absolute_folder",
    "are_finite",
    "check_savable",
    "check_savable_weights",
    "describe_base",
    "extend_lineage",
    "name_base",
    "name_non_finite",
    "prepare_saving",
    "record_base",
    "repair_generation_config",
    "some_of",
    "trained_parameters",
    "with_recorded_path",
]

logger = logging.getLogger(__name__)

_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def absolute_folder(model: str | None) -> str | None:
    """A model's folder whatever the working directory becomes; ids and None as they are."""
    if model is None or not Path(model).expanduser().is_dir():
        return model
    return os.path.abspath(Path(model).expanduser())


def prepare_saving(model: Any, tokenizer: Any, *, base: str | None) -> None:
    """Makes a model that is about to be trained one that can be saved, or refuses it.

    Args:
        model: Changed in place: its generation config, or what its adapters lie on.
        tokenizer: Saved beside it.
        base: Folder or id of the model under its adapters, where known.

    Raises:
        ConfigError: If a part of it cannot be written.
    """
    if not hasattr(model, "peft_config"):
        repair_generation_config(model)
    name_base(model, base)
    check_savable(model, tokenizer)


def repair_generation_config(model: Any) -> None:
    """Makes a generation config one that transformers agrees to save, and says what it changed.

    Some checkpoints carry a temperature without `do_sample`, which is read but never written.

    Args:
        model: Changed in place where it has to be.
    """
    config = getattr(model, "generation_config", None)
    if config is None or (problem := _problem(config)) is None:
        return
    config.do_sample = True  # what a temperature asks for
    what = "do_sample is set to True"
    if _problem(config) is not None:
        kept = {name: getattr(config, name, None) for name in _TOKEN_IDS}
        model.generation_config = type(config)(**kept)
        what = "only its token ids are kept"
    logger.warning(
        "The model's generation config could not be saved as it is: %s. In the saved one %s.",
        problem,
        what,
    )


def check_savable(model: Any, tokenizer: Any) -> None:
    """Tries what saving needs, so that a run that could not end does not begin.

    Args:
        model: A transformers or PEFT model.
        tokenizer: Saved beside it.

    Raises:
        ConfigError: Naming the part that cannot be written, and why.
    """
    adapters = getattr(model, "peft_config", None)
    parts: list[tuple[str, Any]] = [("tokenizer", tokenizer)]
    if adapters is None:
        parts += [(name, getattr(model, name, None)) for name in ("config", "generation_config")]
    else:
        parts += [("adapter's config", config) for config in adapters.values()]
    for what, part in parts:
        if not hasattr(part, "save_pretrained"):
            continue
        with TemporaryDirectory(prefix="moodpo-") as folder:
            try:
                part.save_pretrained(str(Path(folder)))
            except Exception as error:  # whatever a library or a custom class raises
                raise ConfigError(
                    f"The model's {what} cannot be saved: {type(error).__name__}: {error} Correct "
                    "it before training, as everything trained would be lost."
                ) from error


def name_base(model: Any, base: str | None) -> None:
    """Writes into every adapter of a model what it lies on, so that others find it.

    The embedded model stays a folder here: of a Hub id, peft asks the Hub at every save.

    Args:
        model: Changed in place where it carries adapters.
        base: Folder or id of the model under them; None leaves what they say.
    """
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = absolute_folder(base or config.base_model_name_or_path)


def record_base(folder: str | Path, base: str | None) -> None:
    """Writes into a saved adapter what it lies on, by the name that others know.

    Args:
        folder: Changed where it holds an adapter.
        base: Folder or id of the model under it; None leaves what the adapter says.
    """
    path = Path(folder) / ADAPTER_CONFIG
    if base is None or not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "base_model_name_or_path": recorded_name(base)})


def describe_base(base: str | None, *, start: str | None) -> dict[str, Any]:
    """What `moodpo.json` says of the model under the adapter.

    Args:
        base: Folder or id of the model, or `embedded`.
        start: The checkpoint that training started from, if it is another.
    """
    record: dict[str, Any] = {
        "path": None if base is None else recorded_name(base),
        "start": None if start is None else recorded_name(start),
    }
    if base is not None and is_embedded(base):
        record["package"] = POLICY_PACKAGE
    return record


def extend_lineage(start: PolicyFiles) -> list[Mapping[str, Any]]:
    """Records of all earlier iterations, oldest first, for `moodpo.json`.

    Args:
        start: The checkpoint that training starts from.
    """
    previous, folder = start.manifest, Path(start.path).resolve()
    if previous is None:
        logger.warning("%s has no moodpo.json: its objectives and lineage are unknown.", start.path)
    entry = {
        "path": start.path,
        "sha256": hash_weights(start.path),
        "steps": previous.training.get("steps") if previous else None,
        "output_dir": str(folder.parent if folder.name.startswith("checkpoint-") else folder),
    }
    return [*(previous.lineage if previous else ()), entry]


def with_recorded_path(record: Mapping[str, Any]) -> dict[str, Any]:
    """A description whose `path` is what `recorded_name` makes of it."""
    path = record.get("path")
    return {**record, "path": recorded_name(path)} if isinstance(path, str) else dict(record)


def _problem(config: Any) -> str | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split()).partition(" -- ")[0][:200].rstrip(".")
    return None


# ---- Numbers that must not be saved ----


def check_savable_weights(model: nn.Module, *, trained_only: bool = True) -> None:
    """Refuses to save weights that hold a NaN or an infinity.

    Args:
        model: About to be saved.
        trained_only: Whether frozen weights are passed over.

    Raises:
        DivergenceError: Naming the first of them.
    """
    named = trained_parameters(model) if trained_only else list(model.named_parameters())
    if names := name_non_finite(named):
        raise DivergenceError(
            f"The weights to be saved are NaN or infinite: {some_of(names)}. Nothing was written. "
            "Go on from an earlier checkpoint, with a lower learning_rate."
        )


def are_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no value is NaN or infinite; waits for the device once.

    The largest magnitude tells: it overflows in no precision, as a sum of squares would.

    Args:
        tensors: Of any shapes and devices; integers, 8-bit floats and absent data are passed over.
    """
    checked = [
        t.detach() for t in tensors if t.dtype in _CHECKED and t.numel() and t.device.type != "meta"
    ]
    if not checked:
        return True
    return bool(torch.nn.utils.get_total_norm(checked, norm_type=torch.inf).isfinite())


def name_non_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity; cheap where there is none.

    Args:
        named: Such as `model.named_parameters()`.
    """
    tensors = list(named)
    if are_finite(tensor for _, tensor in tensors):
        return []
    return [name for name, tensor in tensors if not are_finite([tensor])]


def trained_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and values of what is trained."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def some_of(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}"
