"""Scoring by K classifiers: `RewardPanel` against one padded batch per reward model, as in TRL.

Run by hand: `python benchmarks/scoring.py --threads 2`. The classifiers are Llamas with random
weights, saved to a temporary folder and loaded as users load them. The ways:

- `panel`: `RewardPanel.score` without a memory of earlier calls. Equal texts once, in batches of
  texts of like length; rewards on one backbone share its forward passes;
- `again`: the same with the panel's own cache, asked about texts that it has scored before;
- `TRL`: what `OnlineDPOTrainer` does. All texts in one padded batch in the order given, one forward
  pass per objective.

The cases: `models`, K classifiers that have nothing in common; `heads`, K classifiers that differ
in their heads alone; `labels`, one classifier whose K labels are the objectives (TRL reads only the
first label; here it is given K passes that read one each). All with texts of equal length and of
mixed lengths. All ways give the same scores; the table says to what precision.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from machine import (
    LENGTHS,
    SHAPES,
    VOCABULARY,
    Timing,
    device_type,
    interleave,
    load_tokenizer,
    parse_options,
    report,
    save,
    set_up,
)
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from moodpo.rewards import RewardPanel, ScoreCache, load_rewards

CASES = ("models", "heads", "labels")
WAYS = ("panel", "again", "TRL")
QUICK = {
    "model": "tiny",
    "lengths": ["mixed"],
    "objectives": 2,
    "texts": 4,
    "prompt_tokens": 4,
    "new_tokens": 16,
}
WORDS = ("the", "of", "and", "house", "river", "bread", "stone", "light", "old")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(SHAPES), default="small", help="of the classifiers")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--objectives", type=int, default=3, help="K")
    parser.add_argument("--texts", type=int, default=32, help="completions, two per prompt")
    parser.add_argument("--prompt_tokens", type=int, default=40)
    parser.add_argument("--new_tokens", type=int, default=128, help="longest completion")
    parser.add_argument("--batch_size", type=int, default=16, help="texts per pass of ours")
    return parse_options(parser, argv, repeats=5, quick=QUICK)


# ---- Texts and classifiers ----


def make_texts(args: argparse.Namespace, lengths: str) -> tuple[list[str], list[str]]:
    """Prompts and completions, aligned; a word is a token."""
    draw = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    longest = args.new_tokens
    shortest = longest if lengths == "equal" else max(1, longest // 4)
    prompts = [text(args.prompt_tokens - 1) + "?" for _ in range((args.texts + 1) // 2)]
    completions = [text(draw.randint(shortest, longest)) for _ in range(args.texts)]
    return [prompt for prompt in prompts for _ in range(2)][: args.texts], completions


def save_classifier(folder: Path, shape: str, *, labels: int, seed: int, head: int = 0) -> Path:
    """A Llama of random weights with a score head, and the tokenizer of the policy."""
    tokenizer = load_tokenizer()
    tokenizer.chat_template = None  # prompt and completion are joined as they are
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPES[shape],
    )
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(head))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_specs(case: str, args: argparse.Namespace, folder: Path) -> list[tuple[Path, int]]:
    """Folder and label of every objective."""
    count, shape = args.objectives, args.model
    if case == "labels":
        shared = save_classifier(folder / "all", shape, labels=count, seed=0)
        return [(shared, label) for label in range(count)]
    seeds = range(count) if case == "models" else [0] * count
    folders = [
        save_classifier(folder / f"rm{k}", shape, labels=1, seed=seed, head=k)
        for k, seed in enumerate(seeds)
    ]
    return [(each, 0) for each in folders]


# ---- The ways; each gives scores [N, K] ----

Texts = tuple[list[str], list[str]]


def make_ours(
    specs: Sequence[tuple[Path, int]], args: argparse.Namespace
) -> tuple[RewardPanel, RewardPanel]:
    """Without and with a memory of earlier calls."""
    rewards = load_rewards(
        [f"o{k}={folder}#label={label}" for k, (folder, label) in enumerate(specs)],
        device=device_type(),
        dtype=torch.float32,
        batch_size=args.batch_size,
    )
    return RewardPanel(rewards, cache=ScoreCache(0)), RewardPanel(rewards)


def make_theirs(specs: Sequence[tuple[Path, int]]) -> Callable[[Texts], Tensor]:
    """As TRL does it."""
    tokenizer = load_tokenizer()
    models = {
        folder: AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        for folder, _ in specs
    }
    for model in models.values():
        model.to(device_type()).eval()

    @torch.inference_mode()
    def score(texts: Texts) -> Tensor:
        columns = []
        for folder, label in specs:
            inputs = tokenizer(
                text=[prompt + completion for prompt, completion in zip(*texts, strict=True)],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                add_special_tokens=False,
            ).to(device_type())
            columns.append(models[folder](**inputs).logits[:, label].cpu())
        return torch.stack(columns, dim=-1)

    return score


# ---- Measurement ----


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    set_up(args.threads)
    rows, records = [], []
    for case, timings in measure(args):
        rows.append(row(case, timings))
        ways = {name: timing.record() for name, timing in timings.items()}
        records.append({**case, "ways": ways, "difference": largest_difference(timings)})
    title = f"{args.texts} texts under {args.objectives} objectives by `{args.model}` classifiers, "
    header = ("classifiers", "lengths", *(f"{way} s" for way in WAYS))
    header += ("panel times as fast", "again times as fast", "largest difference")
    report(f"{title}{args.threads} threads", header, rows)
    save(args.save, {"scoring": {"arguments": vars(args), "cases": records}}, threads=args.threads)


def measure(args: argparse.Namespace) -> Iterator[tuple[dict[str, str], dict[str, Timing]]]:
    """Every case with its timings by way."""
    for case, lengths in product(args.cases, args.lengths):
        with tempfile.TemporaryDirectory() as folder:
            specs, texts = make_specs(case, args, Path(folder)), make_texts(args, lengths)
            panel, remembering = make_ours(specs, args)
            ways = (partial(panel.score, *texts), partial(remembering.score, *texts))
            theirs = partial(make_theirs(specs), texts)
            timings = interleave(
                dict(zip(WAYS, (*ways, theirs), strict=True)), repeats=args.repeats
            )
            yield {"case": case, "lengths": lengths}, timings


def row(case: dict[str, str], timings: dict[str, Timing]) -> list[str]:
    theirs = timings["TRL"].seconds
    return [
        *case.values(),
        *(f"{timing.seconds:.4f}" for timing in timings.values()),
        *(f"{theirs / timings[way].seconds:.1f}" for way in ("panel", "again")),
        f"{largest_difference(timings):.1e}",
    ]


def largest_difference(timings: dict[str, Timing]) -> float:
    """Between the scores that a text was given."""
    scores = torch.stack([timing.results[-1] for timing in timings.values()])  # [ways, N, K]
    return (scores.amax(dim=0) - scores.amin(dim=0)).max().item()


if __name__ == "__main__":
    main()
