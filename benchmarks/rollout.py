"""Rollouts: `HFGenerator` against `model.generate`, on the same prompts, interleaved.

Run by hand: `python benchmarks/rollout.py --threads 2`. Ratios are those of median tokens per
second. Seconds of processor time are shown beside those of the clock: where others use the machine
too, and nothing runs on a GPU, they are the fairer measure. Weights are random unless `--model` is
a path: time does not depend on them, as no completion may end before `--new_tokens` unless `--vary`
says so.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from machine import (
    PRECISIONS,
    VOCABULARY,
    Timing,
    add_model_option,
    interleave,
    load_model,
    parse_options,
    report,
    save,
    set_up,
    spread_end_tokens,
)
from peft import LoraConfig, get_peft_model

from moodpo.generation import HFGenerator, SamplingConfig
from moodpo.records import TokenIds

QUICK = {"model": "tiny", "prompts": 2, "prompt_tokens": 8, "new_tokens": 4}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_option(parser, "smollm2")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="of weights")
    parser.add_argument("--autocast", action="store_true", help="run in a bfloat16 autocast")
    parser.add_argument("--lora", action="store_true", help="add LoRA to all linear layers")
    parser.add_argument("--prompts", type=int, default=16, help="number of prompts")
    parser.add_argument("--completions", type=int, default=2, help="completions per prompt")
    parser.add_argument("--prompt_tokens", type=int, default=90, help="longest prompt")
    parser.add_argument("--new_tokens", type=int, default=48, help="completion length")
    parser.add_argument("--batch_size", type=int, default=64, help="sequences decoded at once")
    parser.add_argument("--top_p", type=float, default=1.0, help="nucleus mass")
    parser.add_argument("--vary", action="store_true", help="prompts and completions of any length")
    parser.add_argument("--profile", action="store_true", help="profile one more rollout of ours")
    return parse_options(parser, argv, repeats=3, quick=QUICK)


def make_model(args: argparse.Namespace) -> Any:
    model = load_model(args.model, getattr(torch, args.precision))
    model.generation_config.eos_token_id = None
    if args.lora:
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    return model.eval()


def make_prompts(args: argparse.Namespace) -> list[TokenIds]:
    draw = random.Random(0)
    shortest = args.prompt_tokens // 3 if args.vary else args.prompt_tokens
    lengths = [draw.randint(shortest, args.prompt_tokens) for _ in range(args.prompts)]
    return [tuple(draw.randrange(5, VOCABULARY) for _ in range(length)) for length in lengths]


def end_tokens(args: argparse.Namespace) -> list[int]:
    """None, or so many that completions of random weights have half the limit on average."""
    return spread_end_tokens(args.new_tokens // 2) if args.vary else []


# ---- The two ways; each returns how many tokens it sampled ----


def ours(model: Any, prompts: list[TokenIds], args: argparse.Namespace) -> int:
    generator = HFGenerator(
        model,
        eos_token_ids=end_tokens(args),
        pad_token_id=0,
        generation_batch_size=args.batch_size,
    )
    sampling = SamplingConfig(max_new_tokens=args.new_tokens, top_p=args.top_p)
    rows = generator.generate(
        prompts, sampling=sampling, num_completions=args.completions, seeds=range(len(prompts))
    )
    return sum(len(completion.token_ids) for row in rows for completion in row)


def theirs(model: Any, prompts: list[TokenIds], args: argparse.Namespace) -> int:
    """`generate` in batches of as many sequences, in the order given."""
    ends, tokens = set(end_tokens(args)), 0
    size = max(1, args.batch_size // args.completions)
    for start in range(0, len(prompts), size):
        chunk = prompts[start : start + size]
        width = max(map(len, chunk))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in chunk])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chunk])
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=args.top_p,
            num_return_sequences=args.completions,
            max_new_tokens=args.new_tokens,
            eos_token_id=sorted(ends) or None,
            pad_token_id=0,
        )[:, width:]
        for row in output.tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            tokens += end
    return tokens


WAYS = {"HFGenerator": ours, "model.generate": theirs}


# ---- Measurement ----


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    set_up(args.threads)
    model, prompts = make_model(args), make_prompts(args)
    cast = torch.autocast(model.device.type, torch.bfloat16) if args.autocast else nullcontext()
    with torch.no_grad(), cast:
        ways = {name: lambda way=way: way(model, prompts, args) for name, way in WAYS.items()}
        timings = interleave(ways, repeats=args.repeats)
        if args.profile:
            profile(ways["HFGenerator"])
    shape = f"{args.prompts} x {args.completions} x {args.new_tokens} tokens"
    title = f"Rollouts of `{args.model}` in {args.precision}, {shape}, {args.threads} threads"
    header = ("way", "s", "tokens/s", "times as fast", "CPU s", "tokens/CPU s", "times as fast")
    report(title, header, rows(timings))
    save(args.save, {"rollout": record(args, timings)}, threads=args.threads)


def rows(timings: dict[str, Timing]) -> list[list[str]]:
    """One per way, compared with the last."""
    base = list(timings.values())[-1]
    cells = []
    for name, timing in timings.items():
        row = [name]
        for kind in ("wall", "processor"):
            seconds = statistics.median(getattr(timing, kind))
            speed = rate(timing, kind)
            row += [f"{seconds:.2f}", f"{speed:.1f}", f"{speed / rate(base, kind):.2f}"]
        cells.append(row)
    return cells


def rate(timing: Timing, kind: str = "wall") -> float:
    """Median tokens per second."""
    seconds = getattr(timing, kind)
    return statistics.median(t / s for t, s in zip(timing.results, seconds, strict=True))


def record(args: argparse.Namespace, timings: dict[str, Timing]) -> dict[str, Any]:
    ways = {
        name: {**timing.record(), "tokens": timing.results, "tokens_per_second": rate(timing)}
        for name, timing in timings.items()
    }
    return {"arguments": vars(args), "ways": ways}


def profile(function: Callable[[], int]) -> None:
    with torch.profiler.profile() as profiler:
        function()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=16))


if __name__ == "__main__":
    main()
