"""`moodpo compare`: several evaluations on one ruler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moodpo.cli.console import print_out, print_table, warn
from moodpo.cli.flags import CommandParser
from moodpo.errors import ConfigError

__all__ = ["name_results", "run"]

RESULTS = "results.json"


def run(argv: Sequence[str]) -> int:
    """Compares results; returns the exit code."""
    args = _parser().read(argv)
    named = name_results(args.results)

    from moodpo.evaluation.compare import compare, terminal_comparison, write_comparison
    from moodpo.evaluation.results import SweepResult

    comparison = compare([(n, SweepResult.load(p)) for n, p in named], seed=args.seed)
    for table in terminal_comparison(comparison):
        print_table(table)
    for text in comparison.warnings:
        warn(text)
    paths = write_comparison(comparison, Path(args.output_dir).expanduser())
    print_out("\n".join(map(str, paths.values())))
    return 0


def name_results(given: Sequence[str]) -> list[tuple[str, Path]]:
    """Names and files of results.

    Args:
        given: `results.json` files or folders that hold one, as PATH or NAME=PATH.

    Returns:
        The name given, else that of the folder; distinct.

    Raises:
        ConfigError: If a file is missing or two have one name.
    """
    named = []
    for text in given:
        name, mark, path = text.rpartition("=")
        file = Path(path).expanduser()
        if not mark and file.is_dir():
            file, name = file / RESULTS, file.resolve().name
        elif file.is_dir():
            file = file / RESULTS
        if not file.is_file():
            raise ConfigError(f"There are no results at {path}. Run `moodpo evaluate` first.")
        named.append((name or file.resolve().parent.name, file))
    names = [name for name, _ in named]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two results are named {repeated[0]!r}. Pass NAME=PATH.")
    return named


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="moodpo compare",
        description="Overlays the fronts of several evaluations of the same objectives, prompts "
        "and weights. The first one gives the units; differences are paired by prompt.",
    )
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="results.json or its folder; NAME=PATH names"
    )
    parser.add_argument(
        "--output_dir", default="outputs/comparison", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap")
    return parser
