"""Laboratory: settings of the method on problems whose best trade-offs are known.

Run by hand: `python benchmarks/laboratory.py --problems convex-2 concave-2 --seeds 0 1 2`. A tiny
Llama is trained from scratch by the real `MOODPOTrainer`, with real conditioning, on synthetic
rewards; a run takes seconds on one processor core.

**Problems.** A completion has `LENGTH` tokens. Every answer token is a point of the simplex lattice
with K corners; the completion's position x is the mean over its answer tokens, so that mixing
tokens reaches every multiple of `1 / (LENGTH * divisions)`. Anything else that the policy writes is
waste: with a share v of answer tokens the true reward is `r_k = v * g_k(x) - 1`, where g is one of
the shapes of `fronts.py`. Every reward lies in [-1, 0]; 0 is its ideal. Training may be told of it
with noise, or in other units; what is measured is always true.

**Optimum.** For each weight vector of the sweep, the best reward vector that a single completion
attains: of the best linear utility where linear weights reach all of the front, elsewhere of the
best augmented Chebyshev utility, measured from the ideal. All attainable positions are enumerated.
The hypervolume of these points, one per weight vector, is a ratio of 1: the policy that always
gives the asked answer has it. A policy that places as many answers more evenly than the weights ask
for can come out above, most easily with many objectives; `utility` cannot.

**What a policy obtains** under a weight vector is its mean true reward where linear weights reach
all of the front: there mixing answers only loses. On any other front a coin flip between two
extremes has a better mean than any single answer, so that its points are typical answers instead
(`fronts.typical_answers`).

**Measures.** `hypervolume`: above `Problem.reference_point`, as a share of the optimum's. `IGD+`:
to all of the true front, in rewards; the optimum's own is above 0, for it has only so many points.
`utility`: how much of its own best utility each weight vector obtains, averaged over single
answers; 0 is pure waste, 1 is the best answer every time. `steerability`: rank correlation within
prompts. The rows `untrained` and `optimum` say where each scale begins and ends.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from fronts import (
    FloatArray,
    Shape,
    asked_points,
    concave,
    convex,
    gaps,
    hypervolume_ratio,
    igd_plus,
    true_front,
    typical_answers,
    utilities,
    utility_share,
)
from machine import report, save
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils import logging

from moodpo.conditioning.instruction import Conditioner
from moodpo.core.scalarization import Scalarization
from moodpo.core.simplex import simplex_lattice
from moodpo.evaluation.plan import prompt_seeds
from moodpo.evaluation.steerability import spearman_within_prompt
from moodpo.evaluation.weights import default_weights
from moodpo.generation.base import SamplingConfig
from moodpo.policy import SteerablePolicy
from moodpo.rewards.function import FunctionReward
from moodpo.training.config import MOODPOConfig
from moodpo.training.trainer import MOODPOTrainer

LENGTH = 4  # tokens of a completion
POSITIONS = 256  # of the model: far more than a prompt and a completion need
LETTERS = "abcdefghijklmno"  # answer tokens, as many as a problem needs
NAMES = "ABCDE"  # of objectives
PROMPT = "?"
SAMPLING = SamplingConfig(max_new_tokens=LENGTH, min_new_tokens=LENGTH)
LEVELS = {2: 11, 3: 11, 5: 6}  # of each weight in a sweep: 11, 66 and 126 weight vectors
GENERATED_AT_ONCE = 512
CURVE_POINTS = 8
MEASURES = {"hypervolume": "↑", "IGD+": "↓", "utility": "↑", "steerability": "↑"}
QUICK = {"problems": ["convex-2"], "settings": ["antithetic"], "seeds": [0], "steps": 24}


# ---- Problems ----


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is rewarded, and how the rewards are reported to training."""

    num_objectives: int
    shape: Shape
    divisions: int  # of the lattice of answer tokens
    asked: Scalarization = "linear"  # what weights ask for
    noise: float = 0.0  # standard deviation added to every reported reward
    scale: float = 1.0  # the first objective is reported that many times as large

    @property
    def tokens(self) -> FloatArray:
        """Where each answer token lies `[T, K]`."""
        return _lattice(self.num_objectives, self.divisions)

    @property
    def attainable(self) -> FloatArray:
        """True rewards `[N, K]` of all completions without waste."""
        return self.shape(_lattice(self.num_objectives, self.divisions * LENGTH)) - 1

    @property
    def weights(self) -> FloatArray:
        """What policies are asked `[W, K]`."""
        return default_weights(self.num_objectives, LEVELS[self.num_objectives])

    @property
    def ideal(self) -> FloatArray:
        """The best of each objective `[K]`."""
        return np.zeros(self.num_objectives)

    @property
    def waste(self) -> FloatArray:
        """The worst there is `[1, K]`: no answer token at all."""
        return np.full((1, self.num_objectives), -1.0)

    @property
    def reference_point(self) -> FloatArray:
        """Of hypervolumes `[K]`: a step of the weights below the worst (Ishibuchi et al. 2018)."""
        return self.waste[0] - 1 / (LEVELS[self.num_objectives] - 1)

    def true_rewards(self, completions: Sequence[str]) -> FloatArray:
        """Rewards `[N, K]` of N texts, without noise or scale."""
        places = dict(zip(LETTERS, self.tokens, strict=False))
        totals = np.array([self._total(places, text) for text in completions])  # [N, K]
        counts = totals.sum(axis=1, keepdims=True)  # [N, 1] answer tokens
        return counts / LENGTH * self.shape(totals / np.maximum(counts, 1)) - 1

    def _total(self, places: Mapping[str, FloatArray], text: str) -> FloatArray:
        return sum((places[c] for c in text if c in places), np.zeros(self.num_objectives))

    def obtained(self, rewards: FloatArray) -> FloatArray:
        """What a policy is credited with `[W, K]` for its answers' rewards `[W, M, K]`."""
        return rewards.mean(axis=1) if self.asked == "linear" else typical_answers(rewards)

    def utilities(self, rewards: FloatArray) -> FloatArray:
        """What answers `[N, K]` or `[W, M, K]` are worth under each weight vector."""
        return utilities(rewards, self.weights, self.asked, ideal=self.ideal)

    def optimum(self) -> FloatArray:
        """What a policy obtains that does exactly as it is asked `[W, K]`."""
        return asked_points(self.attainable, self.weights, self.asked, ideal=self.ideal)

    def measure(self, rewards: FloatArray) -> dict[str, float]:
        """The measures of a policy, given its answers' true rewards `[W, M, K]`."""
        points = self.obtained(rewards)
        best = self.utilities(self.attainable).max(axis=1)
        worst = self.utilities(self.waste)[:, 0]
        steering = spearman_within_prompt(self.weights, rewards)
        return {
            "hypervolume": hypervolume_ratio(
                points, self.optimum(), reference_point=self.reference_point
            ),
            "IGD+": igd_plus(points, true_front(self.attainable)),
            "utility": utility_share(self.utilities(rewards), best, worst),
            "steerability": float(steering.mean()),
        }


def _lattice(num_objectives: int, divisions: int) -> FloatArray:
    steps = simplex_lattice(num_objectives, divisions).double() * divisions
    result: FloatArray = steps.round().numpy() / divisions
    return result


PROBLEMS: dict[str, Problem] = {
    "convex-2": Problem(num_objectives=2, shape=convex, divisions=10),
    "concave-2": Problem(num_objectives=2, shape=concave, divisions=10, asked="chebyshev"),
    "gaps-2": Problem(num_objectives=2, shape=gaps, divisions=10, asked="chebyshev"),
    "convex-3": Problem(num_objectives=3, shape=convex, divisions=4),
    "concave-3": Problem(num_objectives=3, shape=concave, divisions=4, asked="chebyshev"),
    "convex-5": Problem(num_objectives=5, shape=convex, divisions=2),
}
PROBLEMS |= {
    "convex-2-noise": replace(PROBLEMS["convex-2"], noise=0.1),
    "concave-2-noise": replace(PROBLEMS["concave-2"], noise=0.1),
    "convex-2-scale": replace(PROBLEMS["convex-2"], scale=1000.0),
    "concave-2-scale": replace(PROBLEMS["concave-2"], scale=1000.0),
}


class Judge:
    """Reports rewards to training, with noise and in its units, and counts what it was shown."""

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self.problem = problem
        self.completions = 0
        self._noise = np.random.default_rng(seed)

    def rewards(self) -> list[FunctionReward]:
        """One per objective."""
        names = NAMES[: self.problem.num_objectives]
        return [FunctionReward(self._reward(k), name=name) for k, name in enumerate(names)]

    def _reward(self, k: int) -> Callable[..., list[float]]:
        problem, first = self.problem, k == 0

        def reward(completions: Sequence[str]) -> list[float]:
            self.completions += len(completions) if first else 0
            rewards = problem.true_rewards(completions)[:, k]
            rewards += problem.noise * self._noise.standard_normal(len(rewards))
            return ((problem.scale if first else 1.0) * rewards).tolist()

        return reward


# ---- Policies ----


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, bar mark and name; whatever else an instruction holds is left out."""
    alphabet = f"{LETTERS}{NAMES}{PROMPT}:#-"
    special = ("<pad>", "<end>")
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate((*special, *alphabet))}))
    core.normalizer = normalizers.Replace(Regex(f"[^{alphabet}]"), "")
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=special[0],
        eos_token=special[1],
        model_max_length=POSITIONS,
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}:"
    return tokenizer


def make_model(*, seed: int, hidden_size: int = 64, num_layers: int = 2) -> LlamaForCausalLM:
    """A random Llama of a hundred thousand weights, whose next token is nearly uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(make_tokenizer()),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=POSITIONS,
                initializer_range=0.1,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
            )
        ).eval()


def make_conditioner(problem: Problem) -> Conditioner:
    """Bars: a tiny model learns to read them from scratch, and numbers not."""
    names = tuple(NAMES[: problem.num_objectives])
    return Conditioner(objectives=names, weight_format="unary", template="{weights}")


def answer_rewards(problem: Problem, policy: SteerablePolicy, *, samples: int) -> FloatArray:
    """True rewards `[W, M, K]`; sample m has one seed under all weight vectors."""
    W, K = problem.weights.shape
    answers = policy.sample(
        [PROMPT] * (W * samples),
        torch.tensor(problem.weights.repeat(samples, axis=0)),
        seeds=prompt_seeds(0, samples) * W,
        sampling=policy.sampling,
    )
    texts = [answer.text for answer in answers]
    return problem.true_rewards(texts).reshape(W, samples, K)


# ---- Settings ----

SETTINGS: dict[str, dict[str, Any]] = {
    "mo-odpo": {"relabel": "none"},
    "antithetic": {},
    "best-of-4": {"num_generations": 4},
    "opposed": {"weights_per_prompt": 2, "relabel": "none"},
    "spread": {"num_generations": 4, "weights_per_prompt": 2, "relabel": "none"},
    "soft": {"label_temperature": 0.5},
    "spread-soft": {
        "num_generations": 4,
        "weights_per_prompt": 2,
        "relabel": "none",
        "label_temperature": 0.5,
    },
    "chebyshev": {"scalarization": "chebyshev"},
    "spread-chebyshev": {
        "num_generations": 4,
        "weights_per_prompt": 2,
        "relabel": "none",
        "scalarization": "chebyshev",
    },
}
"""What differs from `BASE`, which relabels antithetically, as the defaults do. All settings sample
as many completions: more of a prompt make the batch smaller. A function makes an argument of the
trainer from the problem, as in `{"weight_sampler": lambda problem: ...}`; anything else is a
setting of `MOODPOConfig`."""

BASE: dict[str, Any] = {
    "min_new_tokens": LENGTH,
    "max_new_tokens": LENGTH,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "beta": 0.2,
    "concentration": [1.0],
    "reference": "initial",
}


def make_trainer(
    problem: Problem,
    setting: Mapping[str, Any],
    judge: Judge,
    args: argparse.Namespace,
    *,
    seed: int,
    folder: str,
) -> MOODPOTrainer:
    completions = setting.get("num_generations", 2)
    config = {name: value for name, value in setting.items() if not callable(value)}
    extra = {name: make(problem) for name, make in setting.items() if callable(make)}
    trainer = MOODPOTrainer(
        make_model(seed=seed),
        reward_funcs=judge.rewards(),
        args=MOODPOConfig(
            output_dir=folder,
            max_steps=args.steps,
            per_device_train_batch_size=max(1, 2 * args.batch_size // completions),
            generation_batch_size=GENERATED_AT_ONCE,
            max_prompt_length=POSITIONS // 2,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            log_completions=0,
            disable_tqdm=True,
            use_cpu=True,
            **{**BASE, **config},
        ),
        train_dataset=Dataset.from_dict({"prompt": [PROMPT] * max(64, args.batch_size)}),
        processing_class=make_tokenizer(),
        conditioner=make_conditioner(problem),
        **extra,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---- Runs ----


class Watch(TrainerCallback):
    """Measures the policy as it is trained."""

    def __init__(self, measure: Callable[[], dict[str, float]], every: int) -> None:
        self.measure = measure
        self.every = every
        self.curve: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measures after every so many steps, and after the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.curve.append(self.measure())


def run(
    problem_name: str, setting_name: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Trains and measures one policy; the last point of its curve is the result."""
    problem = PROBLEMS[problem_name]
    judge = Judge(problem, seed=seed)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            problem, SETTINGS[setting_name], judge, args, seed=seed, folder=folder
        )
        policy = steerable(trainer.model, problem, trainer.collector.sampling)

        def measure() -> dict[str, float]:
            rewards = answer_rewards(problem, policy, samples=args.samples)
            return {"completions": judge.completions, **problem.measure(rewards)}

        every = max(1, args.steps // CURVE_POINTS) if args.curve else args.steps
        watch = Watch(measure, every)
        trainer.add_callback(watch)
        trainer.train()
    seconds = time.process_time() - started
    gc.collect()  # a trainer and its model hold on to each other
    return {
        "problem": problem_name,
        "setting": setting_name,
        "seed": seed,
        "seconds": seconds,
        **watch.curve[-1],
        "curve": watch.curve,
    }


def steerable(
    model: Any,
    problem: Problem,
    sampling: SamplingConfig = SAMPLING,
) -> SteerablePolicy:
    return SteerablePolicy(
        model,
        make_tokenizer(),
        make_conditioner(problem),
        sampling=sampling,
        generation_batch_size=GENERATED_AT_ONCE,
    )


def anchors(problem_name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Where the scales begin and end: policies before training, and the optimum."""
    problem = PROBLEMS[problem_name]
    measured = {
        "untrained": [
            answer_rewards(problem, steerable(make_model(seed=seed), problem), samples=args.samples)
            for seed in args.seeds
        ],
        "optimum": [problem.optimum()[:, None]],
    }
    return [
        {
            "problem": problem_name,
            "setting": name,
            "seed": seed,
            "seconds": 0.0,
            "completions": 0,
            **problem.measure(rewards),
            "curve": [],
        }
        for name, sets in measured.items()
        for seed, rewards in zip(args.seeds, sets, strict=False)
    ]


# ---- Tables ----


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, where there is more than one."""
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def grouped(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Records of the same problem and setting, in the order of their first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["problem"], record["setting"]), []).append(record)
    return groups


def result_rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            problem,
            setting,
            f"{group[0]['completions']:,}",
            *(spread([record[name] for record in group]) for name in MEASURES),
            f"{statistics.fmean(record['seconds'] for record in group):.0f}",
        ]
        for (problem, setting), group in grouped(records).items()
    ]


def curve_rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            problem,
            setting,
            f"{points[0]['completions']:,}",
            *(spread([p[n] for p in points]) for n in MEASURES),
        ]
        for (problem, setting), group in grouped(records).items()
        for points in zip(*(record["curve"] for record in group), strict=True)
    ]


# ---- Command line ----


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--problems", nargs="+", choices=list(PROBLEMS), default=["convex-2", "concave-2"]
    )
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=list(SETTINGS),
        default=["mo-odpo", "antithetic", "chebyshev"],
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument(
        "--batch_size", type=int, default=64, help="prompts of a step, two completions each"
    )
    parser.add_argument(
        "--samples", type=int, default=16, help="answers measured per weight vector"
    )
    parser.add_argument("--curve", action="store_true", help="measure during training, too")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--save", metavar="FILE", help="write the measurements as JSON")
    parser.add_argument("--quick", action="store_true", help="one short run: does it work?")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)  # what was given still wins
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    records: list[dict[str, Any]] = []
    for problem in args.problems:
        records += anchors(problem, args)
        for setting in args.settings:
            for seed in args.seeds:
                records.append(run(problem, setting, seed, args))
                print(result_rows(records[-1:])[0], file=sys.stderr, flush=True)
    measures = [f"{name} {direction}" for name, direction in MEASURES.items()]
    header = ("problem", "setting", "completions", *measures)
    title = f"{args.steps} steps of {args.batch_size} prompts, seeds {args.seeds}"
    report(title, (*header, "processor s"), result_rows(records))
    if args.curve:
        trained = [record for record in records if record["curve"]]
        report("During training", header, curve_rows(trained))
    save(args.save, {"laboratory": records, "arguments": vars(args)}, threads=args.threads)


if __name__ == "__main__":
    main()
