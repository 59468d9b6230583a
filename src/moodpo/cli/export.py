"""`moodpo export`: base model and adapter → one model folder, for other engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moodpo.cli.console import note, print_out, quiet_loading, warn
from moodpo.cli.flags import CommandParser
from moodpo.errors import ConfigError
from moodpo.models.find import PolicyFiles, find_policy

if TYPE_CHECKING:
    pass

__all__ = ["run"]

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
    from moodpo.models.export import export_merged

    quiet_loading()
    share = export_merged(files, folder, dtype=dtype)
    note(json.dumps({"base": files.model, "adapter": files.adapter, "dtype": dtype}))
    if dtype == "float32":
        return
    note(f"{share:.0%} of the adapter's change survives in {dtype}")
    if share < ENOUGH:
        warn(f"{dtype} rounds away much of what was trained. --dtype float32 keeps all of it.")
