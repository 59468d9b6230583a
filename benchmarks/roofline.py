"""Roofline: how close each phase of an optimizer step comes to what the machine could do.

Run by hand: `python benchmarks/roofline.py --threads 2`. First the machine's own rates: a large
matrix product and the product with the vocabulary head, in float32 and bfloat16, and the bandwidth
of a copy (bytes read plus bytes written), the best of a few repetitions each. Then the least work
of each phase, and the time that it would take at these rates: `max(operations / rate, bytes /
bandwidth)` (Williams et al. 2009), with the faster of the two products in the model's precision.
Then the time that our step takes for it, by the trainer's own clock. The share is the former over
the latter.

The model is a Llama with LoRA on all linear layers, B prompts of P tokens, two completions of T
tokens each. What is counted, with 2 operations per multiplication and addition:

- `generate`: one prefill of each prompt, with logits at its last token only. Then T - 1 decoding
  steps of all sequences, each of which reads the weights once, and the keys and values of every
  sequence so far. Each step's bound is taken by itself;
- `reference`: a forward pass without adapters over the packed pairs, the prompt once and T - 1
  tokens of each completion, and the head at the tokens predicted;
- `train`: the forward pass with adapters, the backward pass into activations and adapters (not into
  the frozen weights), twice attention's products, and one more product with the head for its
  gradient. The weights are read twice. Reference and training are counted for active pairs only.

Not counted: norms, rotary embeddings, activation functions, softmax and its exponentials, sampling,
residual sums, the bytes of activations, the cast of the adapters, what autograd saves; the
optimizer, scoring and tokenization are no part of the three phases. Nothing is subtracted for the
first layer, whose input needs no gradient. Weights that fit into a processor's cache are read
faster than a copy suggests: a tiny model may come out above 1.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from end_to_end import make_moodpo
from machine import (
    PRECISIONS,
    add_model_option,
    device_type,
    interleave,
    load_model,
    load_tokenizer,
    parse_options,
    report,
    save,
    set_up,
    synchronize,
)
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from moodpo.training.metrics import PhaseClock

PHASES = ("generate", "reference", "train")
COMPLETIONS = 2
QUICK = {
    "model": "tiny",
    "prompts": 2,
    "prompt_tokens": 48,
    "new_tokens": 4,
    "product_size": 64,
    "head_rows": 8,
    "copy_mebibytes": 1,
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = device_type() == "cuda"
    add_model_option(parser, "small")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--prompts", type=int, default=16, help="B, one batch without accumulation")
    parser.add_argument("--prompt_tokens", type=int, default=90, help="P")
    parser.add_argument("--new_tokens", type=int, default=48, help="T")
    parser.add_argument("--product_size", type=int, default=8192 if gpu else 2048)
    parser.add_argument("--head_rows", type=int, default=4096 if gpu else 512)
    parser.add_argument("--copy_mebibytes", type=int, default=1024 if gpu else 256)
    return parse_options(parser, argv, repeats=5, quick=QUICK)


# ---- What the machine can do ----


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Best of a few repetitions."""

    product: dict[str, float]  # operations per second of a large product, by precision
    head: dict[str, float]  # the same of the product with the vocabulary head
    bandwidth: float  # bytes per second, read and written

    def operations(self, precision: str) -> float:
        """The roof of computation."""
        return max(self.product[precision], self.head[precision])


def measure_rates(args: argparse.Namespace, size: Size) -> Rates:
    large, head = (args.product_size,) * 3, (args.head_rows, size.hidden, size.vocabulary)
    return Rates(
        product={each: product_rate(*large, each, args.repeats) for each in PRECISIONS},
        head={each: product_rate(*head, each, args.repeats) for each in PRECISIONS},
        bandwidth=copy_rate(args.copy_mebibytes * 2**20, args.repeats),
    )


def product_rate(rows: int, inner: int, columns: int, precision: str, repeats: int) -> float:
    """Operations per second of `[rows, inner] @ [columns, inner].T`, as linear layers multiply."""
    dtype, device = getattr(torch, precision), device_type()
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(columns, inner, dtype=dtype, device=device)
    multiply = partial(torch.mm, left, right.T, out=left.new_empty(rows, columns))
    return 2.0 * rows * inner * columns / best_seconds(multiply, repeats)


def copy_rate(size: int, repeats: int) -> float:
    """Bytes per second of a copy, each byte counted when read and when written."""
    source = torch.ones(size, dtype=torch.uint8, device=device_type())
    return 2.0 * size / best_seconds(partial(torch.zeros_like(source).copy_, source), repeats)


def best_seconds(function: Callable[[], Any], repeats: int) -> float:
    return min(interleave({"it": function}, repeats=repeats)["it"].wall)


# ---- What a step needs at least ----


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model with LoRA, in numbers."""

    trunk: int  # weights of the blocks' linear layers
    adapters: int  # weights of their adapters
    hidden: int
    vocabulary: int
    layers: int
    query_width: int  # heads times their width
    key_width: int  # key-value heads times their width
    bytes_per_number: int

    @property
    def head(self) -> int:
        """Weights of the vocabulary head."""
        return self.hidden * self.vocabulary

    @property
    def weights(self) -> int:
        """Read by every pass of the policy."""
        return self.trunk + self.adapters + self.head

    def attention(self, visible: float) -> float:
        """Operations for so many visible (query, key) places, all layers: scores and values."""
        return 4.0 * self.query_width * self.layers * visible


@dataclass(frozen=True)
class Work:
    """What cannot be avoided."""

    operations: float
    bytes: float

    def seconds(self, operations_per_second: float, bytes_per_second: float) -> float:
        """The roofline's bound: computing and reading overlap perfectly."""
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def size_of(model: nn.Module, *, bytes_per_number: int) -> Size:
    """Counts the linear layers of a PEFT model."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    counts = {"trunk": 0, "adapters": 0}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            counts["adapters" if ".lora_" in name else "trunk"] += module.weight.numel()
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Size(
        **counts,
        hidden=head.weight.shape[1],
        vocabulary=head.weight.shape[0],
        layers=config.num_hidden_layers,
        query_width=width * config.num_attention_heads,
        key_width=width * config.num_key_value_heads,
        bytes_per_number=bytes_per_number,
    )


def generation(size: Size, prompts: int, prompt: int, new: int) -> list[Work]:
    """The prefill, then every decoding step."""
    weights = size.weights * size.bytes_per_number
    prefill = Work(
        2.0 * (size.trunk + size.adapters) * prompts * prompt
        + size.attention(prompts * causal(prompt))
        + 2.0 * size.head * prompts,
        weights,
    )
    rows = COMPLETIONS * prompts
    steps = []
    for context in range(prompt + 1, prompt + new):  # the token itself included
        cache = 2.0 * size.key_width * size.layers * context * rows * size.bytes_per_number
        operations = 2.0 * size.weights * rows + size.attention(rows * context)
        steps.append(Work(operations, weights + cache))
    return [prefill, *steps]


def reference(size: Size, pairs: float, prompt: int, new: int) -> Work:
    """One forward pass over packed pairs without adapters."""
    tokens, visible = packed(prompt, new)
    operations = pairs * (
        2.0 * size.trunk * tokens + size.attention(visible) + 2.0 * size.head * COMPLETIONS * new
    )
    return Work(operations, (size.trunk + size.head) * size.bytes_per_number)


def training(size: Size, pairs: float, prompt: int, new: int) -> Work:
    """Forward and backward over packed pairs, into activations and adapters."""
    tokens, visible = packed(prompt, new)
    layers = 2 * 2.0 * (size.trunk + size.adapters) + 2.0 * size.adapters
    operations = pairs * (
        layers * tokens + 3 * size.attention(visible) + 2 * 2.0 * size.head * COMPLETIONS * new
    )
    return Work(operations, 2.0 * size.weights * size.bytes_per_number)


def packed(prompt: int, new: int) -> tuple[int, float]:
    """Tokens of a packed pair, and how many (query, key) places are visible in it.

    A completion's last token predicts nothing, so it need not be read.
    """
    read = new - 1
    tokens = prompt + COMPLETIONS * read
    return tokens, causal(prompt) + COMPLETIONS * (read * prompt + causal(read))


def causal(tokens: int) -> float:
    return tokens * (tokens + 1) / 2


def least_work(size: Size, args: argparse.Namespace, *, active: float) -> dict[str, list[Work]]:
    """By phase, as passes that follow each other; `active` is the share of active pairs."""
    shape, pairs = (args.prompt_tokens, args.new_tokens), args.prompts * active
    return {
        "generate": generation(size, args.prompts, *shape),
        "reference": [reference(size, pairs, *shape)],
        "train": [training(size, pairs, *shape)],
    }


# ---- What our step takes ----


class SynchronizedClock(PhaseClock):
    """Waits for the device at both ends of a phase: it would finish in the next one's time."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times what happens within it."""
        synchronize()
        with super().__call__(phase):
            yield
            synchronize()


class PhaseLog(TrainerCallback):
    """Collects the trainer's metrics of every step."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Keeps the logs of steps, and not the one at the end."""
        if "time/generate" in logs:
            self.logs.append(dict(logs))


def measure_step(args: argparse.Namespace) -> tuple[Size, dict[str, list[float]], float]:
    """The model's size, seconds by phase, and the share of active pairs."""
    job = {
        "precision": args.precision,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "batch": args.prompts,
        "accumulation": 1,
        "checkpointing": False,
        "natural": False,
        # A log has the training of the step before: two go by until all phases are warm.
        "steps": args.repeats + 2,
    }
    dtype, log = getattr(torch, args.precision), PhaseLog()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_moodpo(job, load_model(args.model, dtype), load_tokenizer(), folder)
        trainer.clock = SynchronizedClock(trainer.clock.listener)
        trainer.collector.phase = trainer.recorder.clock = trainer.clock
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(log)
        trainer.train()
    warm = log.logs[2:]
    seconds = {phase: [logs[f"time/{phase}"] for logs in warm] for phase in PHASES}
    active = statistics.mean(logs["pairs/active"] for logs in warm)
    return size_of(trainer.model, bytes_per_number=dtype.itemsize), seconds, active


# ---- Both, side by side ----


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    set_up(args.threads)
    size, seconds, active = measure_step(args)
    rates = measure_rates(args, size)
    phases = compare(least_work(size, args, active=active), seconds, rates, args.precision)
    print_rates(rates)
    title = f"Phases of a step of `{args.model}` in {args.precision}, {args.threads} threads"
    report(title, ("phase", "GFLOP", "GB", "bound s", "s", "share"), list(map(row, phases)))
    found = {"rates": asdict(rates), "size": asdict(size), "active": active, "phases": phases}
    save(args.save, {"roofline": {"arguments": vars(args), **found}}, threads=args.threads)


def compare(
    work: Mapping[str, Sequence[Work]],
    seconds: Mapping[str, Sequence[float]],
    rates: Rates,
    precision: str,
) -> list[dict[str, Any]]:
    """One entry per phase, and their sum."""
    entries = []
    for phase, passes in work.items():
        bounds = [each.seconds(rates.operations(precision), rates.bandwidth) for each in passes]
        entries.append(
            {
                "phase": phase,
                "operations": sum(each.operations for each in passes),
                "bytes": sum(each.bytes for each in passes),
                "bound": sum(bounds),
                "median": statistics.median(seconds[phase]),
            }
        )
    names = ("operations", "bytes", "bound", "median")
    total = {name: sum(entry[name] for entry in entries) for name in names}
    entries.append({"phase": "all three", **total})
    return [{**entry, "share": entry["bound"] / entry["median"]} for entry in entries]


def row(entry: Mapping[str, Any]) -> list[str]:
    return [
        entry["phase"],
        f"{entry['operations'] / 1e9:.1f}",
        f"{entry['bytes'] / 1e9:.2f}",
        f"{entry['bound']:.3f}",
        f"{entry['median']:.3f}",
        f"{entry['share']:.2f}",
    ]


def print_rates(rates: Rates) -> None:
    products = {"large product": rates.product, "vocabulary head": rates.head}
    rows = [
        [f"{name}, {precision}", f"{rate / 1e9:.1f} GFLOP/s"]
        for name, by_precision in products.items()
        for precision, rate in by_precision.items()
    ]
    rows.append(["copy, read and written", f"{rates.bandwidth / 1e9:.1f} GB/s"])
    report("Rates of this machine", ("of", "rate"), rows)


if __name__ == "__main__":
    main()
