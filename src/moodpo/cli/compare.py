"""`moodpo compare`: several evaluations on one ruler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moodpo.cli.console import note, print_out, print_table, warn
from moodpo.cli.flags import CommandParser
from moodpo.errors import ConfigError

__all__ = ["name_results", "run"]

RESULTS, EVALUATION = "results.json", "evaluation"


def run(argv: Sequence[str]) -> int:
    """Compares results; returns the exit code."""
    args = _parser().read(argv)
    named = name_results(args.results)
    for name, file in named:
        note(f"{name}: {file}")

    from moodpo.evaluation.comparison import compare
    from moodpo.evaluation.report.comparison import terminal_comparison, write_comparison
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
        given: `results.json` files, or folders of a run or an evaluation, as PATH or NAME=PATH.
            Of a run, what `moodpo evaluate` wrote into it counts, else what training ended with.

    Returns:
        The name given, else that of the run's folder, with as many of the folders above it as
        tell it from the others.

    Raises:
        ConfigError: If a file is missing or two have one name.
    """
    found = [(name, _results_file(path, text)) for text in given for name, path in [_split(text)]]
    names = _tell_apart([name or _run_folder(file) for name, file in found])
    return list(zip(names, (file for _, file in found), strict=True))


def _split(text: str) -> tuple[str, Path]:
    """The name given, or none, and the path: one that exists may hold a "=" itself."""
    cuts = [i for i, character in enumerate(text) if character == "="]
    for name, path in [("", text), *((text[:i], text[i + 1 :]) for i in cuts)]:
        if path and Path(path).expanduser().exists():
            return name, Path(path).expanduser()
    name, _, path = text.rpartition("=")
    return name, Path(path).expanduser()


def _results_file(path: Path, text: str) -> Path:
    for file in (path / EVALUATION / RESULTS, path / RESULTS, path):
        if file.is_file():
            return file
    raise ConfigError(f"There are no results at {text}. Run `moodpo evaluate` first.")


def _run_folder(file: Path) -> Path:
    """The folder of the run or evaluation that a results file is of."""
    folder = file.resolve().parent
    return folder.parent if folder.name == EVALUATION else folder


def _tell_apart(named: Sequence[str | Path]) -> list[str]:
    """Given names as they are; folders by as many of their last parts as none else has."""
    depths = [1] * len(named)
    while True:
        names = [
            name if isinstance(name, str) else "/".join(name.parts[-depth:])
            for name, depth in zip(named, depths, strict=True)
        ]
        repeated = [i for i, name in enumerate(names) if names.count(name) > 1]
        longer = [i for i in repeated if depths[i] < len(getattr(named[i], "parts", ()))]
        if not repeated:
            return names
        if not longer:
            raise ConfigError(f"Two results are named {names[repeated[0]]!r}. Pass NAME=PATH.")
        for i in longer:
            depths[i] += 1


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
        help="the folder of a run or an evaluation, or a results.json; NAME=PATH names it",
    )
    parser.add_argument(
        "--output_dir", default="outputs/comparison", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the bootstrap")
    return parser
