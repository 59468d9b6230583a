"""`moodpo export`: base model and adapter → one model folder, for other engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moodpo.cli.console import note, print_out, quiet_loading, warn
from moodpo.cli.flags import CommandParser
from moodpo.errors import ConfigError
from moodpo.files import share_files
from moodpo.models.embedded import recorded_name
from moodpo.models.find import PolicyFiles, find_policy

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["kept_share", "run"]

ENOUGH = 0.9


def run(argv: Sequence[str]) -> int:
    """Writes the merged model; returns the exit code."""
    args = _parser().read(argv)
    files = find_policy(args.policy, base_model=args.base_model)
    if files.adapter is None:
        raise ConfigError(f"{args.policy} is a whole model already. There is nothing to merge.")
    folder = Path(args.output_dir).expanduser()
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"--output_dir {folder} is not empty. Pass a new folder.")
    _export(files, folder, args.dtype)
    print_out(f"The merged model is in {folder}. Next:\n  moodpo generate {folder} --weights …")
    return 0


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


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="moodpo export",
        description="Merges the adapter into a full model folder, with tokenizer and moodpo.json.",
    )
    parser.add_argument("policy", metavar="POLICY", help="an output_dir or a checkpoint")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--base_model", metavar="PATH", help="the model under its adapter, if moved"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights; half precision rounds small changes away (default: %(default)s)",
    )
    return parser


def _export(files: PolicyFiles, folder: Path, dtype: str) -> None:
    import torch

    from moodpo.models.export import merge_adapter
    from moodpo.models.load import load_adapter, load_model, load_tokenizer
    from moodpo.models.savable import repair_generation_config
    from moodpo.training.guard import check_savable_weights

    quiet_loading()
    base = load_model(files, dtype=torch.float32, adapter=None)
    kind: torch.dtype = getattr(torch, dtype)
    before = {}
    if kind != torch.float32:  # shared weights under each of their names: they may be untied
        named = base.named_parameters(remove_duplicate=False)
        before = {name: parameter.detach().clone() for name, parameter in named}
    model: Any = merge_adapter(load_adapter(base, str(files.adapter)))
    if model is None:
        raise ConfigError(
            f"The adapter {files.adapter} cannot be merged: the merged model would not compute "
            "what base and adapter compute together. Serve them unmerged."
        )
    if before:
        _report_rounding(model, before, kind)
    check_savable_weights(model.to(kind), trained_only=False)  # float16 may overflow
    repair_generation_config(model)
    model.save_pretrained(folder)
    load_tokenizer(files).save_pretrained(folder)
    share_files(folder)
    if files.manifest is not None:
        training = {**files.manifest.training, "peft": False, "merged": dtype}
        base_model = {**files.manifest.base_model, "adapter": recorded_name(str(files.adapter))}
        replace(files.manifest, training=training, base_model=base_model).save(folder)
    note(json.dumps({"base": files.model, "adapter": files.adapter, "dtype": dtype}))


def _report_rounding(model: nn.Module, before: dict[str, Tensor], dtype: Any) -> None:
    """Says how much of what training changed is left in half precision."""
    changed = kept = 0.0
    for name, parameter in model.named_parameters():
        old, new = before[name], parameter.detach()
        norm = float((new - old).double().square().sum())
        changed += norm
        kept += norm * kept_share(new - old, new.to(dtype).float() - old.to(dtype).float())
    share = kept / changed if changed else 1.0
    name = str(dtype).removeprefix("torch.")
    note(f"{share:.0%} of the adapter's change survives in {name}")
    if share < ENOUGH:
        warn(f"{name} rounds away much of what was trained. --dtype float32 keeps all of it.")
