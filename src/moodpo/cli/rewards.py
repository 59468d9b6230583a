"""`moodpo rewards`: the rewards that go by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from moodpo.cli.console import print_out, print_table
from moodpo.cli.flags import CommandParser
from moodpo.rewards.grammar import NamedReward
from moodpo.rewards.kinds import list_forms, list_presets

__all__ = ["run"]

NOTE = (
    "Besides names, --reward_models takes {forms}. "
    "NAME=SPEC renames an objective; @REVISION pins; #label=1 and other options follow a spec."
)


def run(argv: Sequence[str]) -> int:
    """Prints the table; returns the exit code."""
    parser = CommandParser(prog="moodpo rewards", description="Lists rewards that go by name.")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    args = parser.read(argv)
    rows = list_presets()
    if args.json:
        print_out(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False))
    else:
        _print_table(rows)
    return 0


def _print_table(rows: Sequence[NamedReward]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, caption=NOTE.format(forms=list_forms()), caption_justify="left"
    )
    for heading in ("name", "a high score means", "model", "input", "license"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        model = "built in" if row.spec == row.name else row.spec
        cells = (row.name, row.summary, model, row.input, row.license)
        table.add_row(*(Text(cell) for cell in cells))
    print_table(table)
