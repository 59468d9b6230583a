"""`moodpo compare`: several evaluations on one ruler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moodpo.cli.console import note, print_out, print_table, warn
from moodpo.cli.flags import CommandParser
from moodpo.errors import ConfigError

__all__ = ["name_results", "run"]

RESULTS, EVALUATION = "results.json", "evaluation"  # what `moodpo evaluate` writes, and where


def run(argv: Sequence[str]) -> int:
    """Compares results; returns the exit code."""
    args = _parser().read(argv)
    named = name_results(args.results)
    for name, file in named:
        note(f"{name:<11} {file}")

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
        given: `results.json` files, or folders of a run or an evaluation, as PATH or NAME=PATH. Of
            a run it is what `moodpo evaluate` wrote into it, else the sweep that ended training.

    Returns:
        The name given, else that of the run's folder; distinct.

    Raises:
        ConfigError: If a file is missing or two have one name.
    """
    named = [_named_file(text) for text in given]
    names = [name for name, _ in named]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two results are named {repeated[0]!r}. Pass NAME=PATH.")
    return named


def _named_file(text: str) -> tuple[str, Path]:
    """The name and the file of one argument; a path may hold "=" itself, and then wins."""
    cuts = [0, *(place + 1 for place, letter in enumerate(text) if letter == "=")]
    for cut in cuts:
        if (file := _results_of(Path(text[cut:]).expanduser())) is not None:
            return text[: max(0, cut - 1)] or _run_name(file), file
    raise ConfigError(f"There are no results at {text}. Run `moodpo evaluate` first.")


def _results_of(path: Path) -> Path | None:
    places = (path / EVALUATION / RESULTS, path / RESULTS) if path.is_dir() else (path,)
    return next((place for place in places if place.is_file()), None)


def _run_name(file: Path) -> str:
    folder = file.resolve().parent
    return folder.parent.name if folder.name == EVALUATION else folder.name


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="moodpo compare",
        description="Overlays the fronts of several evaluations of the same objectives, prompts "
        "and weights. The first one gives the units; differences are paired by prompt.",
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="a run's folder, an evaluation's, or a results.json; NAME=PATH names it",
    )
    parser.add_argument(
        "--output_dir", default="outputs/comparison", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap")
    return parser
