"""Ablation: each addition to the published method alone, and together, at equal cost.

Run by hand: `python benchmarks/ablation.py --seeds 0 1 2`. Every arm trains the embedded default
with one thing changed until it has sampled the most `--completions`, and is asked whenever it has
sampled one of them: the last is the comparison, the others are the curve. The learning rate is
constant and falls linearly to 0 over the last 30 % of the steps. With `--processor_minutes` arms
are asked after so much training, too, and the rate stays constant: who is asked on the way must not
have been slowed down for an end. Minutes are those of all processors together, without the asking
and the loading.

All arms start from the same base model and adapters, and are asked on the same held-out prompts,
under the same weights, with the same seeds, and measured in the units of the base model with the
preset's way of writing weights. Intervals are Student's over the training seeds: two policies of
the same recipe differ by more than the sampling of their answers.

A run is written to `OUTPUT/ARM-FORMAT-SEED.json` as soon as it has ended and is not run again;
several processes may work on the same folder. `--report` only prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_methods import (
    RECIPE,
    Bench,
    ProcessorClock,
    add_training_options,
    against,
    completions_per_step,
    evaluate,
    make_trainer,
    open_bench,
    policy_of,
    prompting,
)
from machine import report
from transformers import TrainerCallback
from transformers.utils import logging

from moodpo.baselines import train_soup
from moodpo.evaluation.front import hypervolume
from moodpo.evaluation.report.plots import plot_front
from moodpo.evaluation.report.series import Series
from moodpo.evaluation.results import SweepResult
from moodpo.files import write_json
from moodpo.recipes import EMBEDDED

ARMS: dict[str, dict[str, Any]] = {
    "mo-odpo": {"relabel": "none"},
    "moodpo": RECIPE,
    "antithetic": {},
    "best-of-4": {"relabel": "none", "num_generations": 4},
    "opposed": {"relabel": "none", "weights_per_prompt": 2},
    "spread": {"relabel": "none", "num_generations": 4, "weights_per_prompt": 2},
    "spread-chebyshev": {
        "relabel": "none",
        "num_generations": 4,
        "weights_per_prompt": 2,
        "scalarization": "chebyshev",
    },
    "soft": {"relabel": "none", "label_temperature": EMBEDDED["label_temperature"]},
    "likelihood": {"relabel": "none", "rpo_alpha": EMBEDDED["rpo_alpha"]},
    "spread-likelihood": {
        "relabel": "none",
        "num_generations": 4,
        "weights_per_prompt": 2,
        "rpo_alpha": 0.2,
    },
}
"""What differs from the defaults of `MOODPOConfig`, which relabel antithetically; `moodpo` is the
embedded default, all of what helped together. Every arm trains all its pairs, in as many steps of
as many completions at the same rate: more completions of a prompt make the batch smaller."""
SOUPS = "soups"
"""Rewarded Soups, which divide the completions among one specialist per objective."""

MEASURES = {
    "hypervolume": "hypervolume ↑",
    "hypervolume_from_0": "from rewards of 0 ↑",
    "mean_utility": "mean utility ↑",
    "steerability": "steerability ↑",
}
DRIFT = {"kl": "nats from the base", "entropy": "entropy"}
"""What training logs of the completions it sampled: rewards can rise while text falls apart."""
KEPT_ANSWERS = 3
"""Of each weight vector: numbers do not tell prose from a list of words."""
STUDENT = {2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""
QUICK = {
    "arms": ["mo-odpo", "antithetic"],
    "seeds": [0],
    "after_completions": [8, 16],
    "processor_minutes": [0.01],
    "batch_size": 4,
    "max_new_tokens": 8,
    "weights_per_objective": 2,
    "num_prompts": 2,
    "calibration_prompts": 4,
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, SOUPS], default=[*ARMS, SOUPS])
    parser.add_argument(
        "--formats", nargs="+", default=[EMBEDDED["weight_format"]], help="how weights are written"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument(
        "--processor_minutes", nargs="*", type=float, default=[], help="to ask after, too"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="for all arms")
    parser.add_argument("--report", action="store_true", help="only print what is there")
    parser.add_argument("--picture", help="PNG of the fronts of what is there")
    parser.add_argument("--quick", action="store_true", help="as small as can be: does it run?")
    add_training_options(parser)
    parser.add_argument(
        "--completions",
        nargs="+",
        type=int,
        default=[1920],
        dest="after_completions",
        help="to ask after",
    )
    parser.set_defaults(
        output_dir="outputs/ablation",
        num_prompts=84,
    )
    # Of the calibration; runs have seeds of their own, and end by themselves.
    parser.set_defaults(seed=0, completions=1, minutes=None)
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)  # what was given still wins
    return parser.parse_args(argv)


# ---- Runs ----


@dataclass
class Readings(TrainerCallback):  # type: ignore[misc]
    """Asks a policy while it is trained, and ends its training when it has spent everything."""

    ask: Callable[[], dict[str, Any]]
    per_step: int  # completions
    completions: Sequence[int]
    minutes: Sequence[float]
    points: list[dict[str, Any]] = field(default_factory=list)
    asking: float = 0.0  # seconds that are not training

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self.started = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Asks where a budget is spent."""
        spent = time.process_time() - self.started - self.asking
        sampled = state.global_step * self.per_step
        reached = {name_of(count): sampled >= count for count in self.completions}
        reached |= {f"{minutes:g} minutes": spent >= 60 * minutes for minutes in self.minutes}
        read = {name for point in self.points for name in point["of"]}
        due = [name for name, there in reached.items() if there and name not in read]
        if due:
            with ProcessorClock() as clock:
                answer = self.ask()
            self.asking += clock.seconds
            self.points.append({"of": due, "completions": sampled, "seconds": spent, **answer})
        control.should_training_stop |= all(reached.values())
        control.should_log |= bool(due)
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any
    ) -> None:
        """Keeps how far the policy has drifted: the log of a step comes after its end."""
        if DRIFT.keys() <= logs.keys() and self.points:
            point = self.points[-1]
            if point["completions"] == state.global_step * self.per_step:
                point.update({name: logs[name] for name in DRIFT})


def run(bench: Bench, base: SweepResult, arm: str) -> list[dict[str, Any]]:
    """Trains one arm; what was read on the way."""
    args = bench.args
    settings = {**ARMS[arm], **dict(map(parse_setting, args.set))}
    size = completions_per_step(args, settings)
    trainer = make_trainer(bench, arm, {**schedule(args, size), **settings})
    policy = policy_of(bench, trainer, arm)
    readings = Readings(
        ask=lambda: summary(against(evaluate(bench, policy), base, args.reference_point)),
        per_step=size,
        completions=args.after_completions,
        minutes=args.processor_minutes,
    )
    trainer.add_callback(readings)
    trainer.train()
    return readings.points


def run_soups(bench: Bench, base: SweepResult) -> list[dict[str, Any]]:
    """Trains the specialists, and asks their soups when all are done: there is no way there."""
    args = bench.args
    size = completions_per_step(args, {}) * len(bench.panel)
    options = bench.options(SOUPS, **annealed(args, size))
    with ProcessorClock() as clock:
        soup = train_soup(bench.base(), **options)
    answer = summary(against(evaluate(bench, soup), base, args.reference_point))
    return [
        {
            "of": [name_of(max(args.after_completions))],
            "completions": soup.record.training["completions"],
            "seconds": clock.seconds,
            **answer,
        }
    ]


def schedule(args: argparse.Namespace, per_step: int) -> dict[str, Any]:
    """When training ends, and how fast it is until then."""
    return {"max_steps": 1_000_000} if args.processor_minutes else annealed(args, per_step)


def annealed(args: argparse.Namespace, per_step: int) -> dict[str, Any]:
    """Steps for all completions, and a rate that falls at the end."""
    steps = math.ceil(max(args.after_completions) / per_step)
    return {
        "max_steps": steps,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": round(0.3 * steps), "decay_type": "linear"},
    }


def name_of(completions: int) -> str:
    """A budget as tables name it."""
    return f"{completions:,} completions"


def summary(result: SweepResult) -> dict[str, Any]:
    """What the tables need of a sweep."""
    zero = result.normalize(np.zeros(len(result.objectives)))  # [K]
    return {
        "hypervolume": result.metrics["hypervolume"],
        # Also counts policies that go so far for one reward that they fall below the base model
        # in another.
        "hypervolume_from_0": {
            "value": hypervolume(result.normalized_points, reference_point=zero)
        },
        "mean_utility": result.metrics["mean_utility"],
        "steerability": result.steerability["mean"],
        "weights": result.weights.tolist(),
        "rewards": result.rewards.mean(axis=1).tolist(),
        "errors": (result.rewards.std(axis=1) / math.sqrt(result.num_prompts)).tolist(),
        "answers": [list(row[:KEPT_ANSWERS]) for row in result.completions],
    }


def parse_setting(text: str) -> tuple[str, Any]:
    """`NAME=VALUE` of a setting, the value as in JSON or else a word."""
    name, _, value = text.partition("=")
    with contextlib.suppress(json.JSONDecodeError):
        return name, json.loads(value)
    return name, value


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process is the one to write a file; another that is at it has a claim."""
    claim = path.with_suffix(".claim")
    if path.exists():
        yield False
        return
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        yield False
        return
    try:
        yield True
    finally:
        claim.unlink()


def base_sweep(bench: Bench) -> SweepResult:
    """The prompted base model, which gives the units; asked once per folder."""
    path = Path(bench.args.output_dir) / "base.json"
    if path.exists():
        return SweepResult.load(path)
    result = evaluate(bench, prompting(bench))
    result.save(path)
    return result


def train_all(args: argparse.Namespace) -> None:
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    bench = open_bench(args)
    base = base_sweep(bench)
    for seed in args.seeds:
        for weight_format in args.formats:
            for arm in args.arms:
                name = f"{arm}-{weight_format}-{seed}"
                path = folder / f"{name}.json"
                with claimed(path) as mine:
                    if not mine:
                        continue
                    own = replace(
                        bench,
                        args=argparse.Namespace(
                            **{**vars(args), "seed": seed, "weight_format": weight_format}
                        ),
                        conditioner=replace(bench.conditioner, weight_format=weight_format),
                    )
                    points = run_soups(own, base) if arm == SOUPS else run(own, base, arm)
                    record = {"arm": arm, "format": weight_format, "seed": seed, "points": points}
                    write_json(path, record)
                    print(name, *(f"{p['steerability']['value']:.2f}" for p in points), flush=True)
                gc.collect()  # a trainer and its model hold on to each other


# ---- Tables ----


def read_runs(folder: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All runs that have ended, by arm and format in the order of `ARMS`."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault((record["arm"], record["format"]), []).append(record)
    return dict(
        sorted(runs.items(), key=lambda item: ([*ARMS, SOUPS].index(item[0][0]), item[0][1]))
    )


def over_seeds(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval over training seeds; the mean alone of one or two."""
    mean = statistics.fmean(values)
    if len(values) < 3:
        return f"{mean:z.2f}"
    quantile = STUDENT.get(len(values) - 1, 1.96)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:z.2f} [{mean - half:z.2f}, {mean + half:z.2f}]"


def mean_of(values: Iterable[float | None]) -> str:
    """Mean of what is there."""
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.1f}" if known else "–"


def budgets(runs: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[str]:
    """Every moment that some run was asked at, as often as it was reached."""
    records = [record for group in runs.values() for record in group]
    return list(dict.fromkeys(name for r in records for p in r["points"] for name in p["of"]))


def rows(
    runs: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], budget: str
) -> list[list[str]]:
    """One row per arm and format that was asked at a moment."""
    table = []
    for (arm, weight_format), records in runs.items():
        points = [p for record in records for p in record["points"] if budget in p["of"]]
        if points:
            table.append(
                [
                    arm,
                    weight_format,
                    str(len(points)),
                    f"{statistics.fmean(p['completions'] for p in points):,.0f}",
                    f"{statistics.fmean(p['seconds'] for p in points) / 60:.1f}",
                    *(over_seeds([p[name]["value"] for p in points]) for name in MEASURES),
                    *(mean_of(point.get(name) for point in points) for name in DRIFT),
                ]
            )
    return table


def print_tables(folder: Path) -> None:
    runs = read_runs(folder)
    header = (
        "arm",
        "weights as",
        "seeds",
        "completions",
        "minutes",
        *MEASURES.values(),
        *DRIFT.values(),
    )
    for budget in budgets(runs):
        report(f"After {budget}", header, rows(runs, budget))


def draw_fronts(folder: Path, path: str, completions: int) -> None:
    """One front per arm with the most completions: means over seeds, behind the base model's."""
    base = SweepResult.load(folder / "base.json")
    fronts = [("prompting alone", base.weights, base.rewards.mean(axis=1)[:, None])]  # [W, 1, K]
    for (arm, weight_format), records in read_runs(folder).items():
        points = [p for r in records for p in r["points"] if name_of(completions) in p["of"]]
        if points and weight_format == EMBEDDED["weight_format"]:
            rewards = np.array([point["rewards"] for point in points])  # [seeds, W, K]
            fronts.append((arm, np.array(points[0]["weights"]), np.moveaxis(rewards, 0, 1)))
    series = [
        (name, Series(name=name, objectives=base.objectives, weights=weights, rewards=rewards))
        for name, weights, rewards in fronts
    ]
    seeds = max(rewards.shape[1] for _, _, rewards in fronts)
    caption = "One training seed each."
    if seeds > 1:
        caption = f"Means over {seeds} training seeds; bars: 95 % bootstrap intervals over them."
    plot_front(series, path, caption=caption)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    if not args.report:
        train_all(args)
    print_tables(Path(args.output_dir))
    if args.picture:
        draw_fronts(Path(args.output_dir), args.picture, max(args.after_completions))


if __name__ == "__main__":
    main()
