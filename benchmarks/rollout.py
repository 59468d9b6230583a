"""Rollouts: `HFGenerator` against `model.generate`, on the same prompts, interleaved.

Run by hand: `python benchmarks/rollout.py --threads 1 --dtype bfloat16`. Every repetition times
both ways in turn, so that a busy machine slows both; ratios are those of the medians. Seconds of
processor time are shown beside those of the clock: where others use the machine too, and nothing
runs on a GPU, they are the fairer measure. Weights are random unless `--model` is a path: time
does not depend on them, as no completion may end before `--new-tokens` unless `--vary` says so.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from moodpo.generation import HFGenerator, SamplingConfig
from moodpo.records import TokenIds

SHAPES = {
    "smollm2": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 688,
    },
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help=f"{', '.join(SHAPES)}, or a path")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights")
    parser.add_argument("--autocast", action="store_true", help="run in a bfloat16 autocast")
    parser.add_argument("--lora", action="store_true", help="add LoRA to all linear layers")
    parser.add_argument("--prompts", type=int, default=16, help="number of prompts")
    parser.add_argument("--completions", type=int, default=2, help="completions per prompt")
    parser.add_argument("--prompt-tokens", type=int, default=90, help="longest prompt")
    parser.add_argument("--new-tokens", type=int, default=48, help="completion length")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences decoded at once")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus mass")
    parser.add_argument("--vary", action="store_true", help="prompts and completions of any length")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repetitions")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--profile", action="store_true", help="profile one more rollout of ours")
    return parser.parse_args()


def load_model(args: argparse.Namespace) -> torch.nn.Module:
    dtype = getattr(torch, args.dtype)
    if args.model in SHAPES:
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **SHAPES[args.model])
        model = LlamaForCausalLM(config).to(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    model.generation_config.eos_token_id = None
    if args.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def make_prompts(args: argparse.Namespace) -> list[TokenIds]:
    draw = random.Random(0)
    shortest = args.prompt_tokens // 3 if args.vary else args.prompt_tokens
    lengths = [draw.randint(shortest, args.prompt_tokens) for _ in range(args.prompts)]
    return [tuple(draw.randrange(5, 49_000) for _ in range(length)) for length in lengths]


def ours(model: torch.nn.Module, prompts: list[TokenIds], args: argparse.Namespace) -> int:
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


def theirs(model: torch.nn.Module, prompts: list[TokenIds], args: argparse.Namespace) -> int:
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


def end_tokens(args: argparse.Namespace) -> list[int]:
    # With random weights every token is about as likely: that many end tokens make completions
    # of half the limit on average.
    return list(range(0, 49_152, max(1, args.new_tokens // 2))) if args.vary else []


@dataclass
class Timings:
    """What the repetitions of one way took."""

    wall: list[float] = field(default_factory=list)  # seconds
    processor: list[float] = field(default_factory=list)  # seconds, of all threads
    tokens: list[int] = field(default_factory=list)

    def add(self, function: Callable[[], int]) -> None:
        """Times one repetition, which returns how many tokens it sampled."""
        wall, processor = time.perf_counter(), time.process_time()
        self.tokens.append(function())
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    def rate(self, seconds: list[float]) -> float:
        """Median tokens per second."""
        return statistics.median(t / s for t, s in zip(self.tokens, seconds, strict=True))


def main() -> None:
    args = parse_arguments()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    model, prompts = load_model(args), make_prompts(args)
    cast = torch.autocast(model.device.type, torch.bfloat16) if args.autocast else nullcontext()
    ways = {"HFGenerator": ours, "model.generate": theirs}
    timings = {name: Timings() for name in ways}
    with torch.no_grad(), cast:
        for _ in range(args.repeats):
            for name, way in ways.items():
                timings[name].add(lambda way=way: way(model, prompts, args))
        if args.profile:
            profile(lambda: ours(model, prompts, args))
    report(args, timings)


def report(args: argparse.Namespace, timings: dict[str, Timings]) -> None:
    shape = f"{args.prompts} x {args.completions} x {args.new_tokens}"
    print(f"{args.model} {args.dtype}: {shape} tokens, {args.threads} threads")
    print(f"  {'':15} {'wall s':>8} {'tokens/s':>9} {'CPU s':>8} {'tokens/s':>9}")
    for name, timing in timings.items():
        cells = [
            f"{statistics.median(seconds):8.2f} {timing.rate(seconds):9.1f}"
            for seconds in (timing.wall, timing.processor)
        ]
        print(f"  {name:15} {' '.join(cells)}")
    mine, other = timings.values()
    wall = mine.rate(mine.wall) / other.rate(other.wall)
    processor = mine.rate(mine.processor) / other.rate(other.processor)
    print(f"  {'ratio':15} {wall:18.2f} {processor:18.2f}")


def profile(function: Callable[[], int]) -> None:
    with torch.profiler.profile() as profiler:
        function()
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=16)
    print(table)


if __name__ == "__main__":
    main()
