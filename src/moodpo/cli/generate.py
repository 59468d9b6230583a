"""`moodpo generate`: answers to prompts under one weight vector, or several side by side."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moodpo.cli.console import keep_undecodable_bytes, print_out, print_table
from moodpo.cli.flags import CommandParser
from moodpo.cli.policies import (
    add_policy_flags,
    add_sampling_flags,
    load_policy,
    quick_manifest,
)
from moodpo.conditioning.weights import parse_weights
from moodpo.data.messages import as_prompts
from moodpo.errors import ConfigError, WeightsError
from moodpo.files import json_line

__all__ = ["objectives_in", "run"]

_WEIGHT = re.compile(r"[^\s=,]+=[+-]?[\d.]+(e[+-]?\d+)?,?", re.IGNORECASE)

Answers = list[tuple[tuple[float, ...], list[str]]]  # per weight vector: one text per prompt


def run(argv: Sequence[str]) -> int:
    """Prints answers; returns the exit code."""
    args = _parser().read(argv)
    _refuse_stray_weights(args.policy, args.prompts)
    prompts = _read_prompts(args.prompts)
    objectives = _objectives(args)
    vectors = [parse_weights(text, objectives) for text in args.weights]
    policy = load_policy(args, objectives)
    answers = [
        (
            weights,
            policy.generate(
                prompts,
                weights,
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                top_p=args.top_p,
                seed=args.seed,
            ),
        )
        for weights in vectors
    ]
    _print(prompts, objectives, answers, as_json=args.json)
    return 0


def objectives_in(texts: Sequence[str]) -> tuple[str, ...]:
    """The names that weights mention, in the order they appear."""
    names = [part.partition("=")[0].strip() for text in texts for part in text.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="moodpo generate",
        description="Answers prompts under given weights. The same prompt, weights and seed give "
        "the same answer.",
        epilog='example: moodpo generate outputs/iter1 --weights helpful=0.7,harmless=0.3 "Hi!"',
    )
    parser.add_argument(
        "--weights",
        action="append",
        required=True,
        metavar="NAME=X,…",
        help="objective weights; given several times, answers are printed side by side",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per answer")
    parser.add_argument(
        "--objectives",
        nargs="+",
        metavar="NAME",
        help="for a model that moodpo did not train (default: the names in --weights)",
    )
    add_policy_flags(parser)
    add_sampling_flags(parser)
    parser.add_argument(
        "prompts", nargs="*", metavar="PROMPT", help="texts; - reads one from standard input"
    )
    return parser


def _refuse_stray_weights(policy: str, prompts: Sequence[str]) -> None:
    """Refuses weights that a space cut off from --weights: they would be taken for a prompt."""
    words = prompts if Path(policy).expanduser().exists() else [policy, *prompts]
    stray = [word for word in words if _WEIGHT.fullmatch(word)]
    if stray:
        raise WeightsError(
            f"{stray[0]!r} stands by itself, as a policy or prompt would. Join weights by commas "
            "without spaces, as in --weights helpful=0.7,harmless=0.3."
        )


def _read_prompts(given: Sequence[str]) -> list[str]:
    keep_undecodable_bytes()
    prompts = [sys.stdin.read().strip() if text == "-" else text for text in given]
    if not prompts or not all(text.strip() for text in prompts):
        raise ConfigError('There is no prompt. Pass one in quotes, or "-" for standard input.')
    as_prompts(prompts)  # refuses what is not text through and through
    return prompts


def _objectives(args: argparse.Namespace) -> tuple[str, ...]:
    manifest = quick_manifest(args.policy, args.base_model)
    if manifest is not None:
        return tuple(manifest.objectives)
    names = tuple(args.objectives or objectives_in(args.weights))
    if not names:
        raise WeightsError("--weights names no objective. Write NAME=VALUE, comma-separated.")
    return names


def _print(
    prompts: Sequence[str], objectives: Sequence[str], answers: Answers, *, as_json: bool
) -> None:
    if as_json:
        for n, prompt in enumerate(prompts):
            for weights, texts in answers:
                named = dict(zip(objectives, weights, strict=True))
                row = {"prompt": prompt, "weights": named, "completion": texts[n]}
                print_out(json_line(row))
    elif len(answers) == 1 and len(prompts) == 1:
        print_out(answers[0][1][0].strip())
    else:
        for n, prompt in enumerate(prompts):
            print_table(_side_by_side(prompt, objectives, answers, n))


def _side_by_side(prompt: str, objectives: Sequence[str], answers: Answers, n: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(prompt), title_justify="left", box=box.SIMPLE_HEAD, expand=False)
    for weights, _ in answers:
        named = zip(objectives, weights, strict=True)
        table.add_column(Text(" ".join(f"{name}={w:.2g}" for name, w in named)))
    table.add_row(*(Text(texts[n].strip()) for _, texts in answers))
    return table
