"""`moodpo score`: completions of a file in, their scores out."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moodpo.cli.console import note, print_out
from moodpo.cli.flags import CommandParser
from moodpo.data.csv import write_csv
from moodpo.data.prompts import LoadedPrompts, load_prompts
from moodpo.errors import ConfigError, DataError
from moodpo.rewards import check_columns, check_reward_specs
from moodpo.rewards.specs import parse_spec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["run"]


def run(argv: Sequence[str]) -> int:
    """Scores a file; returns the exit code."""
    args = _parser().read(argv)
    check_reward_specs(args.reward_models, minimum=1)
    output = Path(args.output).expanduser()
    _check_output(output, Path(args.csv_path).expanduser())
    loaded = load_prompts(args.csv_path, prompt_column=args.prompt_column, split=args.dataset_split)
    _check_columns(loaded, args.prompt_column, args.completion_column, args.reward_models)
    completions = _completions(loaded, args.completion_column)
    note(str(loaded.report))

    from moodpo.rewards import RewardPanel, load_rewards

    panel = RewardPanel(
        load_rewards(args.reward_models, device=args.device, batch_size=args.reward_batch_size)
    )
    data = loaded.dataset
    columns = {n: list(data[n]) for n in _columns(loaded, args.completion_column)}
    scores = panel.score(loaded.prompts, completions, columns)
    write_csv(output, _rows(loaded, args.prompt_column, panel.names, scores))
    print_out(_summary(panel.names, scores, output))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="moodpo score",
        description="Scores the completions of a file. The output has all columns of the input "
        "and one per reward; rows without a prompt are left out.",
    )
    parser.add_argument("--csv_path", required=True, metavar="FILE", help="prompts and completions")
    parser.add_argument("--prompt_column", default="prompt", metavar="NAME")
    parser.add_argument("--completion_column", default="completion", metavar="NAME")
    parser.add_argument("--dataset_split", default="train", metavar="NAME", help="of a Hub dataset")
    parser.add_argument(
        "--reward_models", nargs="+", required=True, metavar="SPEC", help="see `moodpo rewards`"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FILE",
        help="the CSV to write; one that exists is replaced",
    )
    parser.add_argument("--reward_batch_size", type=int, default=16, metavar="N")
    parser.add_argument("--device", metavar="NAME", help="default: the GPU, else cpu")
    return parser


def _check_output(output: Path, source: Path) -> None:
    """Refuses, before any work, a place that the scores cannot be written to."""
    if output.suffix.lower() != ".csv":
        raise ConfigError(f"--output {output} must end with .csv: scores are written as CSV.")
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder. Pass a file in it: {output}/scores.csv.")
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError(f"--output {output} is the input. Pass another file.")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--output {output} cannot be written: {parent} is not a writable folder."
        )


def _columns(loaded: LoadedPrompts, completion: str) -> list[str]:
    """What reaches reward functions beside prompts and completions."""
    return [name for name in loaded.dataset.column_names if name not in ("prompt", completion)]


def _check_columns(
    loaded: LoadedPrompts, prompt: str, completion: str, specs: Sequence[str]
) -> None:
    others = [name for name in loaded.dataset.column_names if name != "prompt"]
    if completion not in others:
        raise DataError(
            f"{loaded.report.source} has no column {completion!r}; besides prompts it has "
            f"{', '.join(others) or 'none'}. Pass --completion_column."
        )
    # Where another column is the prompts, the file's own `prompt` was renamed when it was read.
    own = {"prompt"} if prompt != "prompt" and "original_prompt" in others else set()
    taken = [n for spec in specs if (n := parse_spec(spec).name) in {prompt, *others, *own}]
    if taken:
        raise ConfigError(
            f"{loaded.report.source} has a column {taken[0]!r} already. Rename the objective, as "
            f"in new_{taken[0]}=<spec>."
        )
    check_columns(specs, _columns(loaded, completion))


def _completions(loaded: LoadedPrompts, column: str) -> list[str]:
    """The text of every completion, plain or as the one message of a conversation.

    Raises:
        DataError: For anything else, naming the row.
    """
    texts = []
    for row, value in enumerate(loaded.dataset[column], start=1):
        text = _message_text(value) if isinstance(value, list) else value
        if not isinstance(text, str):
            counted = " of those with a prompt" if loaded.report.empty_dropped else ""
            raise DataError(
                f"{loaded.report.source}, row {row}{counted}: the completion is "
                f"{reprlib.repr(value)}, expected text, or one message "
                "[{'role': 'assistant', 'content': …}]. Correct or remove the row."
            )
        texts.append(text)
    return texts


def _message_text(messages: Sequence[Any]) -> object:
    """The content of the only message, an assistant's; None where there is no such."""
    only = messages[0] if len(messages) == 1 else None
    if not isinstance(only, dict) or only.get("role", "assistant") != "assistant":
        return None
    return only.get("content")


def _rows(
    loaded: LoadedPrompts, prompt_column: str, names: Sequence[str], scores: Tensor
) -> Iterator[dict[str, Any]]:
    for row, values in zip(loaded.dataset, scores.tolist(), strict=True):
        given = {prompt_column if key == "prompt" else key: value for key, value in row.items()}
        # Seven digits are what float32 holds; more would be noise.
        found = (None if value != value else float(f"{value:.7g}") for value in values)
        yield given | dict(zip(names, found, strict=True))


def _summary(names: Sequence[str], scores: Tensor, output: Path) -> str:
    lines = []
    for k, name in enumerate(names):
        known = scores[:, k][~scores[:, k].isnan()].double()
        mean = f"{known.mean().item():.4f}" if len(known) else "none"
        std = f"{known.std(correction=0).item():.4f}" if len(known) else "none"
        lines.append(f"{name}: mean {mean}, std {std}, {len(known)} of {len(scores)} scored")
    return "\n".join([*lines, f"scores are in {output}"])
