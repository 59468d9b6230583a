"""Log-probabilities of pairs: the tiled head and shared prompts against full logits, and memory.

Run by hand: `python benchmarks/logps.py --threads 2`. Three ways to the same numbers:

- `pairs`: ours. Each prompt once with both of its completions (`collate_pairs`), and the vocabulary
  head at completion tokens only, tile by tile (`completion_logps`);
- `sequences`: ours without the shared prompt (`collate_sequences`);
- `full`: TRL's `OnlineDPOTrainer._forward`. One row per completion, prompts padded on the left and
  completions on the right, logits of every position, a log-softmax over those of the completions.

`train` is forward and backward into LoRA on all linear layers, with entropies where they are ours;
`reference` is the pass without adapter and gradient. All models are prepared by accelerate as the
trainers do, which runs them in autocast in bfloat16 and hands out float32. Each way lives in a
process of its own, so that its peak memory is its own, and they take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from accelerate import Accelerator
from end_to_end import lora
from machine import (
    LENGTHS,
    PRECISIONS,
    VOCABULARY,
    Timing,
    add_model_option,
    answer_turns,
    device_type,
    load_model,
    parse_options,
    report,
    save,
    set_up,
    take_turns,
)
from peft import get_peft_model
from torch import Tensor, nn

from moodpo.core.tokens import TokenBatch, collate_pairs, collate_sequences
from moodpo.kernels.attention import use_pair_attention
from moodpo.kernels.lora import fuse_lora
from moodpo.models.logps import completion_logps, head_is_linear
from moodpo.records import TokenIds

WAYS = ("pairs", "sequences", "full")
PASSES = ("reference", "train")
QUICK = {
    "model": "tiny",
    "precisions": ["float32"],
    "lengths": ["mixed"],
    "pairs": 2,
    "prompt_tokens": 12,
    "new_tokens": 8,
}
Pair = tuple[TokenIds, tuple[TokenIds, TokenIds]]  # a prompt and its completions


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_option(parser, "small")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--pairs", type=int, default=8, help="prompts, two completions each")
    parser.add_argument("--prompt_tokens", type=int, default=90, help="longest prompt")
    parser.add_argument("--new_tokens", type=int, default=48, help="longest completion")
    parser.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    return parse_options(parser, argv, repeats=5, quick=QUICK)


def make_pairs(job: dict[str, Any]) -> list[Pair]:
    """Random tokens."""
    draw = random.Random(0)

    def text(longest: int) -> TokenIds:
        shortest = longest if job["lengths"] == "equal" else max(1, longest // 4)
        return tuple(draw.randrange(5, VOCABULARY) for _ in range(draw.randint(shortest, longest)))

    prompt, new = job["prompt_tokens"], job["new_tokens"]
    return [(text(prompt), (text(new), text(new))) for _ in range(job["pairs"])]


# ---- The ways: log-probabilities [2B], a pair's completions side by side ----


def tiled(model: nn.Module, batch: TokenBatch, *, linear_head: bool, entropies: bool) -> Tensor:
    return completion_logps(
        model, batch, linear_head=linear_head, with_entropies=entropies
    ).logps  # [2B]


def full(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """As TRL does it."""
    width = batch["completion_ids"].shape[1]
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits  # [2B, S, V]
    logps = logits[:, -width - 1 : -1].log_softmax(dim=-1)  # [2B, T, V]
    chosen = torch.take_along_dim(logps, batch["completion_ids"].unsqueeze(-1), dim=2).squeeze(-1)
    return (chosen * batch["completion_mask"]).sum(1)


def collate_full(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Two padded rectangles side by side, one row per completion."""
    rows = [(prompt, completion) for prompt, both in pairs for completion in both]
    before = max(len(prompt) for prompt, _ in rows)
    after = max(len(completion) for _, completion in rows)
    prompts = [(*[0] * (before - len(p)), *p) for p, _ in rows]
    completions = [(*c, *[0] * (after - len(c))) for _, c in rows]
    masks = [[0] * (before - len(p)) + [1] * len(p) for p, _ in rows]
    completion_mask = torch.tensor([[1] * len(c) + [0] * (after - len(c)) for _, c in rows])
    batch = {
        "input_ids": torch.tensor([(*p, *c) for p, c in zip(prompts, completions, strict=True)]),
        "attention_mask": torch.cat([torch.tensor(masks), completion_mask], dim=1),
        "completion_ids": torch.tensor(completions),
        "completion_mask": completion_mask,
    }
    return {name: values.to(device_type()) for name, values in batch.items()}


def collate_tiled(way: str, pairs: Sequence[Pair]) -> TokenBatch:
    if way == "pairs":
        batch = collate_pairs([p for p, _ in pairs], [both for _, both in pairs], pad_token_id=0)
    else:
        batch = collate_sequences(
            [p for p, both in pairs for _ in both],
            [c for _, both in pairs for c in both],
            pad_token_id=0,
        )
    return batch.to(device_type())


# ---- One way, in a process of its own ----


def work(job: dict[str, Any]) -> None:
    """Runs the passes of one way when it is asked to."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        set_up(job["threads"])
        answer_turns(make_passes(job), answers)


def make_passes(job: dict[str, Any]) -> dict[str, Callable[[], list[float]]]:
    """`reference` and `train` of one way; each returns its log-probabilities."""
    accelerator = Accelerator(
        cpu=device_type() == "cpu",
        mixed_precision="bf16" if job["precision"] == "bfloat16" else "no",
    )
    policy = get_peft_model(load_model(job["model"], getattr(torch, job["precision"])), lora())
    if job["way"] != "full":  # what `MOODPOTrainer` does to a policy
        fuse_lora(policy)
        use_pair_attention(policy)
    linear_head = head_is_linear(policy)  # asked, as there, before autocast rounds the logits
    model = accelerator.prepare_model(policy)
    score = make_scorer(job, model, linear_head=linear_head)

    def reference() -> list[float]:
        model.eval()
        with torch.no_grad(), policy.disable_adapter(), accelerator.autocast():
            return score(False).tolist()

    def train() -> list[float]:
        model.train()
        with accelerator.autocast():
            logps = score(True)  # [2B]
        (logps[0::2] - logps[1::2]).sum().backward()
        model.zero_grad()
        return logps.tolist()

    return {"reference": reference, "train": train}


def make_scorer(
    job: dict[str, Any], model: nn.Module, *, linear_head: bool
) -> Callable[[bool], Tensor]:
    pairs = make_pairs(job)
    if job["way"] == "full":
        batch = collate_full(pairs)
        return lambda _: full(model, batch)
    tokens = collate_tiled(job["way"], pairs)
    return lambda train: tiled(model, tokens, linear_head=linear_head, entropies=train)


# ---- All ways, in turn ----


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.worker:
        work(json.loads(args.worker))
        return
    rows, records = [], []
    for case, result in measure(args):
        records.append({**case, "ways": {way: record(result[way]) for way in WAYS}})
        rows += [row(case, each, {way: result[way][each] for way in WAYS}) for each in PASSES]
    title = f"Log-probabilities of {args.pairs} pairs of `{args.model}`, {args.threads} threads"
    header = ("precision", "lengths", "pass", *(f"{way} s" for way in WAYS), "times as fast")
    header += (*(f"{way} GiB" for way in WAYS), "memory", "largest difference")
    report(title, header, rows)
    save(args.save, {"logps": {"arguments": vars(args), "cases": records}}, threads=args.threads)


def measure(
    args: argparse.Namespace,
) -> Iterator[tuple[dict[str, str], dict[str, dict[str, Timing]]]]:
    """Every case with its timings by way and pass."""
    names = ("model", "pairs", "prompt_tokens", "new_tokens", "threads")
    common = {name: getattr(args, name) for name in names}
    for precision in args.precisions:
        for lengths in args.lengths:
            case = {"precision": precision, "lengths": lengths}
            jobs = {way: {**common, **case, "way": way} for way in WAYS}
            yield case, take_turns(__file__, jobs, passes=PASSES, repeats=args.repeats)


def row(case: dict[str, str], each: str, timings: dict[str, Timing]) -> list[str]:
    """Times and memory of one pass; `full` against `pairs`."""
    ours, theirs = timings["pairs"], timings["full"]
    return [
        *case.values(),
        each,
        *(f"{timing.seconds:.3f}" for timing in timings.values()),
        f"{theirs.seconds / ours.seconds:.1f}",
        *(f"{timing.peak:.2f}" for timing in timings.values()),
        f"{ours.peak / theirs.peak:.2f}",
        f"{largest_difference(timings):.1e}",
    ]


def largest_difference(timings: dict[str, Timing]) -> float:
    """Between the log-probabilities of a completion, in nats."""
    values = torch.tensor([timing.results[-1] for timing in timings.values()])  # [ways, 2B]
    return (values.amax(dim=0) - values.amin(dim=0)).max().item()


def record(timings: dict[str, Timing]) -> dict[str, Any]:
    """Of one way, by pass."""
    return {
        each: {**timing.record(), "logps": timing.results[-1]} for each, timing in timings.items()
    }


if __name__ == "__main__":
    main()
