"""Export: base model and adapter → one model folder, for other engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.errors import ConfigError
from moodpo.files import share_files
from moodpo.models.embedded import recorded_name
from moodpo.models.find import PolicyFiles
from moodpo.models.load import load_adapter, load_model, load_tokenizer
from moodpo.models.merge import merge_adapter
from moodpo.models.savable import check_savable_weights, repair_generation_config

__all__ = ["export_merged", "kept_share"]


def export_merged(files: PolicyFiles, folder: str | Path, *, dtype: str = "float32") -> float:
    """Writes a policy's model with its adapter merged, its tokenizer and its `moodpo.json`.

    Args:
        files: Of the policy; has an adapter.
        folder: Made if missing.
        dtype: Of the weights: `float32`, `bfloat16` or `float16`.

    Returns:
        How much of what training changed is left in that type: 1 is all of it.

    Raises:
        ConfigError: If the merged model would not compute what base and adapter compute.
        DivergenceError: If a weight is NaN or infinite, as float16 may make it.
    """
    base = load_model(files, dtype=torch.float32, adapter=None)
    kind: torch.dtype = getattr(torch, dtype)
    before: dict[str, Tensor] = {}
    if kind != torch.float32:  # shared weights under each of their names: they may be untied
        named = base.named_parameters(remove_duplicate=False)
        before = {name: parameter.detach().clone() for name, parameter in named}
    model: Any = merge_adapter(load_adapter(base, str(files.adapter)))
    if model is None:
        raise ConfigError(
            f"The adapter {files.adapter} cannot be merged: the merged model would not compute "
            "what base and adapter compute together. Serve them unmerged."
        )
    share = _share_left(model, before, kind) if before else 1.0
    check_savable_weights(model.to(kind), trained_only=False)  # float16 may overflow
    repair_generation_config(model)
    model.save_pretrained(folder)
    load_tokenizer(files).save_pretrained(folder)
    share_files(Path(folder))
    if files.manifest is not None:
        training = {**files.manifest.training, "peft": False, "merged": dtype}
        base_model = {**files.manifest.base_model, "adapter": recorded_name(str(files.adapter))}
        replace(files.manifest, training=training, base_model=base_model).save(Path(folder))
    return share


def kept_share(change: Tensor, stored: Tensor) -> float:
    """How much of a change of weights survives being stored in fewer bits.

    Args:
        change: Exact change of a weight matrix.
        stored: The change between the rounded weights before and after; same shape.

    Returns:
        `1 - |stored - change|^2 / |change|^2`, at least 0: 1 keeps all of it.
    """
    norm = float(change.double().square().sum())
    lost = float((stored.double() - change.double()).square().sum())
    return max(0.0, 1 - lost / norm) if norm > 0 else 1.0


def _share_left(model: nn.Module, before: dict[str, Tensor], dtype: torch.dtype) -> float:
    changed = kept = 0.0
    for name, parameter in model.named_parameters():
        old, new = before[name], parameter.detach()
        norm = float((new - old).double().square().sum())
        changed += norm
        kept += norm * kept_share(new - old, new.to(dtype).float() - old.to(dtype).float())
    return kept / changed if changed else 1.0
