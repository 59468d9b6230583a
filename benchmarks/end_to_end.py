"""A whole optimizer step: moodpo against TRL's `OnlineDPOTrainer`, completions/s and peak memory.

Run by hand: `python benchmarks/end_to_end.py --threads 2`. Both train the same model with the same
LoRA on the same conditioned prompts with the same callables as rewards, and sample the same number
of tokens. Precision `best` gives each side the one that it is faster in. Each side lives in a
process of its own, so that its peak memory is its own, and the two take their steps in turn, so
that a busy machine slows both. The cases:

- `user`: batch 1, accumulation 8, activation checkpointing on both sides (TRL's default);
- `tuned`: TRL as fast as it goes: batch 8, no accumulation, no checkpointing, with its KV cache;
- `long`: the same with completions of 128 tokens, where logits decide the memory;
- `natural`: as `tuned`, but completions end by themselves, after half the limit on average.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from machine import (
    add_model_option,
    device_type,
    load_model,
    load_tokenizer,
    parse_options,
    peak_memory,
    report,
    save,
    spread_end_tokens,
    synchronize,
    take_turns,
    word_prompts,
)
from peft import LoraConfig
from transformers import TrainerCallback

from moodpo.conditioning.instruction import Conditioner
from moodpo.models.embedded import EMBEDDED_NAME

CASES: dict[str, dict[str, Any]] = {
    "user": {"batch": 1, "accumulation": 8, "checkpointing": True},
    "tuned": {"batch": 8, "accumulation": 1, "checkpointing": False},
    "long": {"batch": 8, "accumulation": 1, "checkpointing": False, "new_tokens": 128},
    "natural": {"batch": 8, "accumulation": 1, "checkpointing": False, "natural": True},
}
PRECISIONS = ("float32", "bfloat16", "best")
BEST = {"moodpo": "bfloat16", "trl": "float32"}  # on a CPU TRL is slower in bfloat16
QUICK = {
    "model": "tiny",
    "cases": ["user"],
    "precisions": ["bfloat16"],
    "prompt_tokens": 48,
    "new_tokens": 4,
}
OBJECTIVES = ("vowels", "spaces")
SIDES = ("moodpo", "trl")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_option(parser, "small")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["float32", "best"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--prompt_tokens", type=int, default=90, help="of a conditioned prompt")
    parser.add_argument("--new_tokens", type=int, default=48)
    parser.add_argument("--scale", type=int, default=1, help="times as many prompts per step")
    parser.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    return parse_options(parser, argv, repeats=5, quick=QUICK)


# ---- One side, in a process of its own ----


class Gate(TrainerCallback):
    """Takes one optimizer step per line of the standard input; answers as `answer_turns` does."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers
        self.started = (0.0, 0.0)  # seconds of the clock, and of the processors

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Waits for the first step."""
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reports a step, and waits for the next."""
        synchronize()
        wall, processor = self.started
        answer = {
            "wall": time.perf_counter() - wall,
            "processor": time.process_time() - processor,
            "peak": peak_memory(),
            "result": None,
        }
        print(json.dumps(answer), file=self.answers, flush=True)
        if state.global_step < state.max_steps:
            self._wait()

    def _wait(self) -> None:
        sys.stdin.readline()
        self.started = time.perf_counter(), time.process_time()


def work(job: dict[str, Any]) -> None:
    """Trains one side under the gate."""
    answers, sys.stdout = sys.stdout, sys.stderr  # trainers print
    torch.set_num_threads(job["threads"])
    tokenizer = load_tokenizer()
    if job["precision"] == "best":
        job["precision"] = BEST[job["side"]]
    model = load_model(job["model"], getattr(torch, job["precision"]))
    if job["natural"] and job["model"] != EMBEDDED_NAME:
        model.generation_config.eos_token_id = spread_end_tokens(job["new_tokens"] // 2)
    make = {"moodpo": make_moodpo, "trl": make_trl}[job["side"]]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(job, model, tokenizer, folder)
        trainer.add_callback(Gate(answers))
        trainer.train()


def make_moodpo(job: dict[str, Any], model: Any, tokenizer: Any, folder: str) -> Any:
    from moodpo import MOODPOConfig, MOODPOTrainer

    # Without relabeling and with all pairs: the work of TRL, no more and no less. The scale of the
    # rewards does not matter here.
    args = MOODPOConfig(
        **common_settings(job, folder),
        activation_checkpointing=job["checkpointing"],
        min_new_tokens=0 if job["natural"] else job["new_tokens"],
        relabel="none",
        reward_normalization="running",
        log_completions=0,
    )
    return MOODPOTrainer(
        model,
        reward_funcs=list(REWARDS),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": raw_prompts(job, tokenizer)}),
        processing_class=tokenizer,
        peft_config=lora(),
        conditioner=conditioner(),
    )


def make_trl(job: dict[str, Any], model: Any, tokenizer: Any, folder: str) -> Any:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    args = OnlineDPOConfig(
        **common_settings(job, folder),
        gradient_checkpointing=job["checkpointing"],
        generation_kwargs={} if job["natural"] else {"min_new_tokens": job["new_tokens"]},
        max_length=4096,
    )
    rows = [conditioner().messages(prompt, [0.5, 0.5]) for prompt in raw_prompts(job, tokenizer)]
    trainer = OnlineDPOTrainer(
        model,
        reward_funcs=list(REWARDS),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": rows}),
        processing_class=tokenizer,
        peft_config=lora(),
    )
    trainer._beta = 0.1  # a list fails after the first step
    return trainer


def common_settings(job: dict[str, Any], folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["accumulation"],
        "max_new_tokens": job["new_tokens"],
        "temperature": 1.0,
        "max_steps": job["steps"],
        "learning_rate": 1e-5,
        "bf16": job["precision"] == "bfloat16",
        "use_cpu": device_type() == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def lora() -> LoraConfig:
    return LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def conditioner() -> Conditioner:
    return Conditioner(objectives=OBJECTIVES, weight_format="decimal")


def raw_prompts(job: dict[str, Any], tokenizer: Any) -> list[str]:
    """Prompts of common words, as long as asked for once they are conditioned."""
    frame = len(conditioner().encode(tokenizer, "", [0.5, 0.5]))
    count = job["batch"] * job["accumulation"] * job["steps"]
    return word_prompts(count, max(1, job["prompt_tokens"] - frame))


def vowels(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [sum(c in "aeiou" for c in text(answer)) / 100 for answer in completions]


def spaces(prompts: Any, completions: Any, **_: Any) -> list[float]:
    return [text(answer).count(" ") / 10 for answer in completions]


REWARDS = (vowels, spaces)


def text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


# ---- Both sides, in turn ----


def measure(job: dict[str, Any], sides: Sequence[str], *, repeats: int) -> dict[str, Any]:
    """Steps of all sides in turn; the first of each is a warm-up."""
    jobs = {side: {**job, "side": side} for side in sides}
    timings = take_turns(__file__, jobs, passes=["step"], repeats=repeats)
    return {side: timings[side]["step"].record() for side in sides}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.worker:
        work(json.loads(args.worker))
        return
    rows, records = [], []
    for case in args.cases:
        for precision in args.precisions:
            job = {
                "model": args.model,
                "precision": precision,
                "prompt_tokens": args.prompt_tokens,
                "new_tokens": args.new_tokens,
                "natural": False,
                "steps": args.repeats + 1,
                "threads": args.threads,
                **CASES[case],
            }
            job["batch"] *= args.scale if job["accumulation"] == 1 else 1
            job["accumulation"] *= args.scale if job["accumulation"] > 1 else 1
            result = measure(job, args.sides, repeats=args.repeats)
            records.append({"case": case, **job, "result": result})
            rows.append(row(case, job, result))
            print(rows[-1], file=sys.stderr, flush=True)
    title = f"Optimizer steps of `{args.model}`, {args.threads} threads"
    header = ("case", "precision", *(f"{side} s" for side in args.sides), "times as fast")
    header += (*(f"{side} GiB" for side in args.sides), "memory")
    report(title, header, rows)
    save(args.save, {"end_to_end": records}, threads=args.threads)


def row(case: str, job: dict[str, Any], result: dict[str, dict[str, Any]]) -> list[str]:
    sides = list(result.values())
    first, last = sides[0], sides[-1]
    return [
        case,
        job["precision"],
        *(f"{side['median']:.2f}" for side in sides),
        f"{last['median'] / first['median']:.1f}",
        *(f"{side['peak']:.2f}" for side in sides),
        f"{first['peak'] / last['peak']:.2f}",
    ]


if __name__ == "__main__":
    main()
