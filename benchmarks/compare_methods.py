"""Methods: one steerable policy against prompting, Rewarded Soups, fixed weights and RiC.

Run by hand: `python benchmarks/compare_methods.py --threads 2`. Every method
starts from the same base model, adapters, rewards and prompts, and may sample as many completions
in training as the others: a method of several policies divides them (`--envelope` gives every
fixed-weight policy the whole budget instead). `--minutes` ends each method's training early. All
are then asked on the same held-out prompts, under the same weights, with the same seeds, and
measured in the units of the base model.

Writes `OUTPUT/<method>/results.json`, each trained baseline beside it, `OUTPUT/comparison.json`,
`.md`, `.png` and `.html`, and `OUTPUT/methods.md`: the table with what each method cost.
The completions that set the scale of the rewards (`--calibration_prompts`, twice each) are sampled
once, for all methods, and counted for none.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging

from moodpo.baselines import (
    PromptedPolicy,
    train_fixed_weights,
    train_rewards_in_context,
    train_soup,
)
from moodpo.baselines.members import (
    Setup,
    add_adapter,
    base_rollouts,
    cyclic_draw,
)
from moodpo.conditioning.instruction import Conditioner
from moodpo.data.prompts import embedded_prompts, load_prompts
from moodpo.evaluation.analysis import analyze
from moodpo.evaluation.comparison import Comparison, compare
from moodpo.evaluation.front import normalize_points
from moodpo.evaluation.plan import pick_prompts
from moodpo.evaluation.report.comparison import write_comparison
from moodpo.evaluation.report.tables import Column, Table, format_intervals, markdown_table
from moodpo.evaluation.results import Baseline, SweepResult
from moodpo.evaluation.sweep import run_sweep
from moodpo.evaluation.weights import default_weights
from moodpo.files import write_json
from moodpo.generation.base import Completion, Generator
from moodpo.models.embedded import EMBEDDED_NAME, embedded_policy_path
from moodpo.policy import SteerablePolicy
from moodpo.recipes import EMBEDDED
from moodpo.rewards import RewardPanel, load_rewards
from moodpo.rewards.normalize import Normalizer
from moodpo.rewards.words import words_of
from moodpo.training.config import MOODPOConfig
from moodpo.training.rollout import NUM_COMPLETIONS
from moodpo.training.trainer import MOODPOTrainer

QUICK = {
    "completions": 32,
    "batch_size": 4,
    "max_new_tokens": 12,
    "weights_per_objective": 3,
    "fixed_weights": 2,
    "num_prompts": 4,
    "calibration_prompts": 8,
}
RECIPE = {
    name: EMBEDDED[name]
    for name in (
        "per_device_train_batch_size",
        "num_generations",
        "weights_per_prompt",
        "relabel",
        "label_temperature",
        "rpo_alpha",
        "learning_rate",
    )
}
"""What the embedded default adds to the published method."""
OWN = "of methods that do not bring their own"
MEASURES = {
    "hypervolume": "hypervolume ↑",
    "mean_utility": "mean utility ↑",
    "steerability": "steerability ↑",
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=DEFAULT_METHODS)
    parser.add_argument("--completions", type=int, default=1920, help="sampled by each method")
    parser.add_argument("--minutes", type=float, help="end each method's training after so many")
    parser.add_argument("--envelope", action="store_true", help="whole budget per fixed weight")
    parser.add_argument("--fixed_weights", type=int, default=3, help="levels trained per objective")
    parser.add_argument("--ric_epochs", type=float, default=3.0, help="of RiC's fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="as small as can be: does it run?")
    add_training_options(parser)
    parser.set_defaults(output_dir="outputs/methods")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)  # what was given still wins
    return parser.parse_args(argv)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What all policies are trained and asked with."""
    parser.add_argument("--model", default=EMBEDDED_NAME, help="base model: a path or Hub id")
    parser.add_argument("--reward_models", nargs="+", default=list(EMBEDDED["reward_models"]))
    parser.add_argument("--csv_path", default=EMBEDDED_NAME, help="training prompts")
    parser.add_argument("--eval_csv_path", default=EMBEDDED_NAME, help="held-out prompts")
    parser.add_argument("--weights_per_objective", type=int, default=5, help="levels asked")
    parser.add_argument("--num_prompts", type=int, default=48, help="held-out prompts")
    # As the embedded default, which has half the prompts and twice the completions of each: every
    # method takes as many steps of as many completions at the same rate, and trains all its pairs.
    parser.add_argument("--batch_size", type=int, default=12, help=f"pairs sampled per step; {OWN}")
    parser.add_argument("--learning_rate", type=float, default=EMBEDDED["learning_rate"], help=OWN)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lora_r", type=int, default=EMBEDDED["lora_r"])
    parser.add_argument("--max_new_tokens", type=int, default=EMBEDDED["max_new_tokens"])
    parser.add_argument("--weight_format", default=EMBEDDED["weight_format"])
    parser.add_argument("--concentration", type=float, default=EMBEDDED["concentration"][0])
    parser.add_argument("--temperature", type=float, default=EMBEDDED["temperature"])
    parser.add_argument(
        "--lora_layers",
        type=int,
        nargs="+",
        help="blocks that carry the adapter (default: the upper half of the embedded model, all of "
        "others)",
    )
    parser.add_argument("--calibration_prompts", type=int, default=64)
    parser.add_argument(
        "--reference_point",
        type=float,
        nargs="+",
        help="raw rewards that hypervolumes count from (default: a standard deviation below the "
        "base model's lowest mean)",
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--output_dir")


@dataclass(kw_only=True)
class Bench:
    """What all methods share."""

    args: argparse.Namespace
    path: str  # of the base model
    tokenizer: Any
    panel: RewardPanel
    conditioner: Conditioner
    train_dataset: Dataset
    normalizer: Normalizer
    took: dict[str, dict[str, Any]] = field(default_factory=dict)  # method -> cost of training

    @property
    def dtype(self) -> torch.dtype:
        """Of the base weights."""
        return getattr(torch, self.args.dtype)

    def base(self) -> torch.nn.Module:
        """A base model of its own for every method: training adds adapters to it."""
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=self.dtype)

    def config(self, method: str, *, policies: int = 1, **settings: Any) -> MOODPOConfig:
        """The settings of one trainer of a method that divides its budget among policies."""
        args = self.args
        per_step = completions_per_step(args, settings)
        return training_config(
            args,
            output_dir=str(Path(args.output_dir) / method / "training"),
            **{
                "max_steps": max(1, round(args.completions / policies / per_step)),
                **settings,
                "per_device_train_batch_size": prompts_per_step(args, settings),
            },
        )

    def options(self, method: str, *, policies: int = 1, **settings: Any) -> dict[str, Any]:
        """What a baseline is trained with."""
        return {
            "reward_funcs": self.panel.rewards,
            "args": self.config(method, policies=policies, **settings),
            "train_dataset": self.train_dataset,
            "processing_class": self.tokenizer,
            "peft_config": lora(self.args),
            "conditioner": self.conditioner,
            "base": self.path,
            "normalizer": self.normalizer,
            "callbacks": [StopAfter(self.seconds(policies))],
        }

    def seconds(self, policies: int = 1) -> float:
        """How long one of several policies may be trained."""
        return (self.args.minutes or float("inf")) * 60 / policies


def prompts_per_step(args: argparse.Namespace, settings: Mapping[str, Any]) -> int:
    """Of a method with some settings changed: as many completions as the others, or fewer."""
    generations = settings.get("num_generations", NUM_COMPLETIONS)
    size = args.batch_size * NUM_COMPLETIONS // generations
    return int(min(settings.get("per_device_train_batch_size", size), size))


def completions_per_step(args: argparse.Namespace, settings: Mapping[str, Any]) -> int:
    """What a method with some settings changed samples in a step."""
    generations = settings.get("num_generations", NUM_COMPLETIONS)
    return int(prompts_per_step(args, settings) * generations)


def training_config(args: argparse.Namespace, **settings: Any) -> MOODPOConfig:
    common = {
        "max_new_tokens": args.max_new_tokens,
        "learning_rate": args.learning_rate,
        "beta": args.beta,
        "temperature": args.temperature,
        # Constant after the warmup: a method that is ended early has not been slowed down.
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 3,
        "weight_format": args.weight_format,
        "concentration": [args.concentration],
        "calibration_prompts": args.calibration_prompts,
        "reward_normalization": "calibrate",
        "bf16": args.dtype == "bfloat16",
        "seed": args.seed,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 10,
        "log_completions": 0,
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
    }
    return MOODPOConfig(**{**common, **settings})


def lora(args: argparse.Namespace) -> LoraConfig:
    layers = args.lora_layers
    if layers is None and args.model == EMBEDDED_NAME:
        layers = list(EMBEDDED["lora_layers_to_transform"])
    named = list(EMBEDDED["lora_target_modules"])
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=2 * args.lora_r,
        lora_dropout=0.0,
        # Another architecture has other names; peft picks blocks of named modules only.
        target_modules="all-linear" if layers is None else named,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )


class ProcessorClock:
    """Seconds of all processors together: what a method costs on a machine that others use too."""

    def __enter__(self) -> ProcessorClock:
        """Starts the clock."""
        self.started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.seconds = time.process_time() - self.started


class StopAfter(TrainerCallback):
    """Ends training that has taken so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Stops when the time is up."""
        control.should_training_stop |= time.perf_counter() - self.started > self.seconds
        return control


def prompting(bench: Bench) -> PromptedPolicy:
    return PromptedPolicy.from_model(
        bench.base(),
        bench.tokenizer,
        bench.conditioner,
        sampling=bench.config("prompting").sampling,
        base_model=bench.path,
    )


class CountedGenerator:
    """Counts the completions of another generator."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.completions = 0

    def generate(self, *args: Any, **kwargs: Any) -> list[tuple[Completion, ...]]:
        """As the other."""
        rows = self.generator.generate(*args, **kwargs)
        self.completions += sum(map(len, rows))
        return rows

    def sync(self, version: int) -> None:
        """As the other."""
        self.generator.sync(version)

    def close(self) -> None:
        """As the other."""
        self.generator.close()


def steerable(bench: Bench, *, method: str) -> SteerablePolicy:
    """The method itself: one policy for all weights."""
    trainer = make_trainer(bench, method, SETTINGS[method])
    trainer.collector.generator = counted = CountedGenerator(trainer.collector.generator)
    trainer.train()
    trainer.save_model()
    bench.took[method] = {
        "completions": counted.completions,
        "steps": trainer.state.global_step,
    }
    return policy_of(bench, trainer, method)


def make_trainer(bench: Bench, method: str, settings: Mapping[str, Any]) -> MOODPOTrainer:
    """A trainer with some settings changed, which may sample as many completions in all."""
    options = bench.options(method, **settings)
    model = add_adapter(
        bench.base(), options.pop("peft_config"), "default", seed=options["args"].seed
    )
    normalizer = options.pop("normalizer")
    trainer = MOODPOTrainer(model, **options)
    trainer.normalizer = normalizer
    return trainer


def policy_of(bench: Bench, trainer: MOODPOTrainer, method: str) -> SteerablePolicy:
    """The policy that a trainer is training, as it is now."""
    return SteerablePolicy(
        # The Trainer's own precision stays: it may still be training.
        trainer.accelerator.unwrap_model(trainer.model),
        bench.tokenizer,
        bench.conditioner,
        sampling=trainer.collector.sampling,
        info={"name": method, "path": trainer.args.output_dir, "kind": "adapter", "lineage": []},
        dtype=bench.dtype if trainer.args.bf16 else None,
        base=bench.path,
    )


def soups(bench: Bench) -> Any:
    return train_soup(bench.base(), **bench.options("soups", policies=len(bench.panel)))


def fixed(bench: Bench) -> Any:
    weights = default_weights(len(bench.panel), bench.args.fixed_weights)
    policies = 1 if bench.args.envelope else len(weights)
    return train_fixed_weights(bench.base(), weights, **bench.options("fixed", policies=policies))


def ric(bench: Bench) -> Any:
    # Half of the minutes for sampling, half for fine-tuning.
    limit = time.perf_counter() + bench.seconds(2)
    settings = {"max_steps": -1, "num_train_epochs": bench.args.ric_epochs}
    options = bench.options("ric", **settings)
    options["callbacks"] = [StopAfter(bench.seconds(2))]
    return train_rewards_in_context(
        bench.base(),
        num_completions=bench.args.completions,
        keep_sampling=lambda: time.perf_counter() < limit,
        **options,
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "moodpo": RECIPE,
    "mo-odpo": {"relabel": "none"},
    "antithetic": {},
    "best-of-4": {"num_generations": 4},
}
"""`moodpo` is the embedded default, `mo-odpo` the published method, `antithetic` the defaults of
`MOODPOConfig`; the others change one thing of these."""
METHODS: dict[str, Callable[[Bench], Any]] = {
    "prompting": prompting,
    "soups": soups,
    "fixed": fixed,
    "ric": ric,
    **{name: partial(steerable, method=name) for name in SETTINGS},
}
DEFAULT_METHODS = ["prompting", "moodpo", "mo-odpo", "soups", "fixed", "ric"]


def open_bench(args: argparse.Namespace) -> Bench:
    """Loads what is shared, and fixes the scale of the rewards on the base model's answers."""
    path = str(embedded_policy_path()) if args.model == EMBEDDED_NAME else args.model
    rewards = load_rewards(args.reward_models)
    names = [reward.name for reward in rewards]
    conditioner = Conditioner(objectives=names, **words_of(names), weight_format=args.weight_format)
    bench = Bench(
        args=args,
        path=path,
        tokenizer=AutoTokenizer.from_pretrained(path),
        panel=RewardPanel(rewards),
        conditioner=conditioner,
        train_dataset=read_prompts(args.csv_path, "train"),
        normalizer=Normalizer("calibrate", len(names)),
    )
    options = {**bench.options("calibration"), "normalizer": None}
    setup = Setup.of(bench.base(), **options)
    weights = torch.tensor(default_weights(len(names), args.weights_per_objective)).float()
    collector = setup.collector(conditioner, cyclic_draw(weights))
    rollouts = base_rollouts(
        setup, collector, prompts=args.calibration_prompts, key=(args.seed, "calibrate")
    )
    bench.normalizer.calibrate(torch.cat([r.rewards.flatten(0, 2) for r in rollouts]))
    return bench


def read_prompts(source: str, split: str) -> Dataset:
    return load_prompts(embedded_prompts(split) if source == EMBEDDED_NAME else source).dataset


def evaluate(bench: Bench, policy: Any) -> SweepResult:
    """The sweep of one policy on the held-out prompts, not yet measured."""
    args = bench.args
    dataset = read_prompts(args.eval_csv_path, "heldout")
    prompts, columns = pick_prompts(dataset, args.num_prompts)
    weights = default_weights(len(bench.panel), args.weights_per_objective)
    return run_sweep(
        policy,
        prompts,
        bench.panel,
        weights=weights,
        seed=args.seed,
        sampling=policy.sampling,
        columns=columns,
        # A soup is sampled one weight vector at a time: whole columns fill its batches.
        chunk_size=len(prompts) * len(weights),
        data_source=args.eval_csv_path,
    )


def against(
    result: SweepResult, base: SweepResult, reference_point: Sequence[float] | None = None
) -> SweepResult:
    """A sweep measured in the units of the prompted base model, and compared with it.

    Args:
        result: Of any method.
        base: Of the prompted base model.
        reference_point: Of hypervolumes, in raw reward; the base model's own when None.
    """
    units = base.normalization
    reference = base.reference_point
    if reference_point is not None:
        reference = normalize_points(reference_point, units.mean, units.std)
    return analyze(
        replace(
            result,
            normalization=replace(units, source="per-answer rewards of the prompted base model"),
            reference_point=reference,
            baseline=Baseline(
                name="prompting alone",
                rewards=base.rewards,
                completions=base.completions,
                lengths=base.lengths,
                finished=base.finished,
            ),
            warnings=(),
        )
    )


def run(bench: Bench, method: str) -> SweepResult:
    """Trains and asks one method."""
    print(f"{method}: training", flush=True)
    with ProcessorClock() as clock:
        policy = METHODS[method](bench)
    folder = Path(bench.args.output_dir) / method
    if hasattr(policy, "record"):
        policy.save(folder)
        bench.took[method] = {"completions": 0, **policy.record.training}
    bench.took[method]["processor_seconds"] = clock.seconds
    print(f"{method}: {bench.took[method]}; asking", flush=True)
    result = evaluate(bench, policy)
    # Measured against the base model only at the end, but answers are kept as soon as they are in.
    result.save(folder / "results.json")
    return result


def methods_table(comparison: Comparison, took: dict[str, dict[str, Any]]) -> Table:
    """What each method reached, and what it cost."""
    cells = [
        [f"{took[name]['completions']:,}" for name in comparison.names],
        [f"{took[name]['processor_seconds'] / 60:.1f}" for name in comparison.names],
        *(format_intervals([row.get(key) for row in comparison.measures]) for key in MEASURES),
    ]
    labels = ("completions", "processor minutes", *MEASURES.values())
    return Table(
        title="Methods at equal completions",
        columns=(Column("method", numeric=False), *(Column(label) for label in labels)),
        rows=tuple(zip(comparison.names, *cells, strict=True)),
        note="Brackets: 95 % intervals over held-out prompts; they do not cover training, where "
        "another seed gives another policy. Units: standard deviations of the prompted base "
        "model's answers.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    # The base model gives the units, so it is always asked.
    methods = list(dict.fromkeys(["prompting", *args.methods]))
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    bench = open_bench(args)
    sweeps = {}
    for method in methods:
        sweeps[method] = run(bench, method)
        gc.collect()  # a trainer and its model hold on to each other
    results = {
        name: against(result, sweeps["prompting"], args.reference_point)
        for name, result in sweeps.items()
    }
    for name, result in results.items():
        result.save(output / name / "results.json")
    # The method first: it is what the others are compared with.
    order = sorted(results, key=lambda name: name != "moodpo")
    if len(order) < 2:
        print(f"Only {order[0]} was asked: nothing to compare.")
        return
    comparison = compare([(name, results[name]) for name in order], seed=args.seed)
    write_comparison(comparison, output)
    write_json(output / "methods.json", {"arguments": vars(args), "training": bench.took})
    table = markdown_table(methods_table(comparison, bench.took))
    (output / "methods.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
