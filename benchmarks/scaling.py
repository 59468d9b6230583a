"""How the cost of a whole optimizer step grows: with objectives, prompts, lengths and vocabulary.

Run by hand: `python benchmarks/scaling.py --threads 2`. Each quantity is swept with everything else
fixed. The exponent is the slope of log seconds against log size by least squares: 1 is
proportional, 0 is free. Sizes of one sweep take their steps in turn, so that a busy machine slows
all alike. Rewards are callables, so that what K costs is ours and not the reward models' own.

What is to be expected, and why:

- `objectives` 0: weights, scores and pairing are small beside the model. Prompts are as long for
  every K: the words give way to the instruction, which grows by a few tokens per objective;
- `prompts` 1, and less while they are few: a decoding step reads all weights for any batch;
- `prompt_tokens` between 0 and 1: decoding only attends to them; beyond 1 would be attention's
  square;
- `new_tokens` up to 1: a decoding step each, and as many rows of the head; the prompt's share is
  fixed;
- `vocabulary` between 0 and 1: only the head grows.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from end_to_end import common_settings, lora
from machine import (
    PRECISIONS,
    SHAPES,
    VOCABULARY,
    Timing,
    load_model,
    load_tokenizer,
    parse_options,
    report,
    save,
    set_up,
    synchronize,
    word_prompts,
)
from transformers import PrinterCallback, TrainerCallback

from moodpo import MOODPOConfig, MOODPOTrainer
from moodpo.conditioning.instruction import Conditioner


@dataclass(frozen=True)
class Sweep:
    """Sizes of one quantity, and the exponent to expect."""

    sizes: tuple[int, ...]
    expected: str


SWEEPS = {
    "objectives": Sweep((2, 3, 5, 8), "0"),
    "prompts": Sweep((2, 4, 8, 16), "up to 1"),
    "prompt_tokens": Sweep((64, 128, 256, 512), "0 to 1"),
    "new_tokens": Sweep((16, 32, 64, 128), "up to 1"),
    "vocabulary": Sweep((49_152, 98_304, 196_608), "0 to 1"),
}
QUICK_SWEEPS = {
    "objectives": (2, 3),
    "prompts": (1, 2),
    "prompt_tokens": (48, 64),
    "new_tokens": (2, 4),
    "vocabulary": (49_152, 50_000),
}
FIXED = {"objectives": 2, "prompts": 8, "prompt_tokens": 96, "new_tokens": 32}
QUICK = {"model": "tiny", "objectives": 2, "prompts": 1, "prompt_tokens": 64, "new_tokens": 2}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SHAPES), default="small")
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    for name, size in FIXED.items():
        parser.add_argument(f"--{name}", type=int, default=size, help="where it is not swept")
    return parse_options(parser, argv, repeats=5, quick=QUICK)


# ---- One trainer ----


class StepTimer(TrainerCallback):
    """Times the one optimizer step of each call of `train`, without what surrounds it."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The rollout comes next."""
        synchronize()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer has stepped."""
        synchronize()
        self.seconds = time.perf_counter() - self.started


def make_step(job: dict[str, Any], folder: str) -> Callable[[], float]:
    """Takes one optimizer step and returns its seconds."""
    tokenizer, names = load_tokenizer(), [f"o{k}" for k in range(job["objectives"])]
    conditioner = Conditioner(objectives=names, weight_format="decimal")
    model = load_model(job["model"], getattr(torch, job["precision"]), vocabulary=job["vocabulary"])
    trainer = MOODPOTrainer(
        model,
        reward_funcs=[make_reward(k) for k in range(job["objectives"])],
        args=MOODPOConfig(
            **common_settings({**job, "batch": job["prompts"], "accumulation": 1}, folder),
            min_new_tokens=job["new_tokens"],
            relabel="none",
            reward_normalization="running",
            log_completions=0,
        ),
        train_dataset=Dataset.from_dict({"prompt": make_prompts(job, conditioner, tokenizer)}),
        processing_class=tokenizer,
        peft_config=lora(),
        conditioner=conditioner,
    )
    trainer.remove_callback(PrinterCallback)
    timer = StepTimer()
    trainer.add_callback(timer)

    def step() -> float:
        trainer.train()
        return timer.seconds

    return step


def make_prompts(job: dict[str, Any], conditioner: Conditioner, tokenizer: Any) -> list[str]:
    """Prompts of common words, all as long as asked for once they are conditioned."""
    uniform = [1 / job["objectives"]] * job["objectives"]
    words = job["prompt_tokens"] - len(conditioner.encode(tokenizer, "", uniform))
    if words < 1:
        raise SystemExit(
            f"The instruction for {job['objectives']} objectives alone has more than "
            f"--prompt_tokens {job['prompt_tokens']}. Pass {job['prompt_tokens'] - words + 1}."
        )
    return word_prompts(job["prompts"], words)


def make_reward(k: int) -> Callable[..., list[float]]:
    """A number that follows from the text, so that different texts never tie."""

    def reward(completions: Sequence[str], **_: Any) -> list[float]:
        return [random.Random(f"{k} {text}").random() for text in completions]

    reward.__name__ = f"o{k}"
    return reward


# ---- Sweeps ----


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    set_up(args.threads)
    rows, records = [], {}
    for name in args.sweeps:
        timings = measure(name, args)
        slope = exponent(list(timings), [timing.seconds for timing in timings.values()])
        rows.append(row(name, timings, slope))
        sizes = [
            {"size": size, "median": timing.seconds, "seconds": timing.wall}
            for size, timing in timings.items()
        ]
        records[name] = {"sizes": sizes, "exponent": slope, "expected": SWEEPS[name].expected}
    title = f"Optimizer steps of `{args.model}` in {args.precision}, {args.threads} threads"
    report(title, ("swept", "sizes", "s", "exponent", "expected"), rows)
    save(args.save, {"scaling": {"arguments": vars(args), **records}}, threads=args.threads)


def measure(name: str, args: argparse.Namespace) -> dict[int, Timing]:
    """Steps of all sizes in turn; the first of each is a warm-up."""
    sizes = QUICK_SWEEPS[name] if args.quick else SWEEPS[name].sizes
    timings = {size: Timing() for size in sizes}
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            size: make_step(job_of({name: size}, args), str(Path(folder) / str(size)))
            for size in sizes
        }
        for repeat in range(args.repeats + 1):
            for size, step in steps.items():
                seconds = step()
                if repeat:
                    timings[size].wall.append(seconds)
    return timings


def job_of(changed: dict[str, int], args: argparse.Namespace) -> dict[str, Any]:
    fixed = {name: getattr(args, name) for name in FIXED}
    common = {"model": args.model, "precision": args.precision, "vocabulary": VOCABULARY}
    return {**common, **fixed, "steps": 1, **changed}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds against log size, by least squares."""
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - middle_x) ** 2 for a in x)


def row(name: str, timings: dict[int, Timing], slope: float) -> list[str]:
    sizes = ", ".join(f"{size}" for size in timings)
    seconds = ", ".join(f"{timing.seconds:.2f}" for timing in timings.values())
    return [name, sizes, seconds, f"{slope:.2f}", SWEEPS[name].expected]


if __name__ == "__main__":
    main()
