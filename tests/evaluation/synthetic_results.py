"""Sweep results with a known shape, for the tests of figures, reports and comparisons."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from moodpo.evaluation.analysis import analyze
from moodpo.evaluation.results import Baseline, HeldOut, Normalization, SweepResult

NAMES = ("positivity", "objectivity", "brevity", "relevance", "fluency")
OPENERS = ("Of course!", "Honestly,", "Let me think.", "In short:", "What a lovely question!")
SENTENCES = (
    "The morning market opens at seven and closes when the last loaf is gone.",
    "Most of the water is lost before it ever reaches the field.",
    "I would start with the smallest piece that can be tested on its own.",
    "You will love how simple it becomes after the first week of practice.",
    "The committee measured the effect twice and found no difference.",
    "Nobody expects a perfect answer on the first attempt, and that is wonderful.",
    "There are three reasons, and the second one matters most.",
)


def lattice(num_objectives: int, divisions: int) -> np.ndarray:
    """All weights that are multiples of 1/divisions, first objective's corner first."""
    steps = [s for s in product(range(divisions + 1), repeat=num_objectives) if sum(s) == divisions]
    return np.array(sorted(steps, reverse=True), dtype=np.float64) / divisions


def make_result(
    num_objectives: int = 2,
    divisions: int = 4,
    num_prompts: int = 12,
    *,
    weights: np.ndarray | None = None,
    analyzed: bool = True,
    seed: int = 0,
    gain: float = 1.0,
    name: str = "smollm2-moodpo",
    **changes: Any,
) -> SweepResult:
    """A policy that follows its weights along a concave front, above a base that barely does.

    Args:
        num_objectives: K, up to 5.
        divisions: Of the weight lattice.
        weights: Other weights `[W, K]` than the lattice.
        analyzed: Whether metrics, steerability and warnings are filled in.
        num_prompts: N.
        seed: Of everything random.
        gain: How far the front lies above the base model, in reward standard deviations.
        name: The policy's name.
        changes: Fields to replace.
    """
    generator = np.random.default_rng(seed)
    objectives = NAMES[:num_objectives]
    weights = lattice(num_objectives, divisions) if weights is None else weights
    W, N, K = len(weights), num_prompts, num_objectives
    scale = np.array([0.45, 0.2, 6.0, 0.15, 0.7])[:K]
    offset = np.array([0.28, -0.35, -18.0, 0.42, -2.6])[:K]
    # The prompt's share, common to all weights and to every policy that meets the same prompts.
    difficulty = np.random.default_rng(99).normal(size=(1, N, K))
    base = 0.12 * weights[:, None, :] + 0.75 * difficulty + 0.5 * generator.normal(size=(W, N, K))
    front = np.sqrt(weights) - 0.35  # [W, K] concave
    noise = 0.75 * difficulty + 0.5 * generator.normal(size=(W, N, K))
    rewards = offset + scale * (gain * front[:, None, :] + noise)
    fields: dict[str, Any] = {
        "objectives": objectives,
        "policy": {
            "name": name,
            "path": f"outputs/{name}",
            "kind": "adapter",
            "lineage": [{"path": "outputs/iter1", "adapter_sha256": "9f2c" * 16, "steps": 240}],
        },
        "data": {"source": "prompts_heldout.csv", "num_prompts": N, "sha256": "4be1" * 16},
        "weights": weights,
        "prompts": tuple(f"Prompt {n + 1}: {SENTENCES[n % 7]} What now?" for n in range(N)),
        "seeds": tuple(range(100, 100 + N)),
        "sampling": {"max_new_tokens": 48, "min_new_tokens": 0, "temperature": 1.0, "top_p": 1.0},
        "rewards": rewards,
        "completions": _texts(generator, W, N),
        "lengths": generator.integers(12, 48, size=(W, N)),
        "kl": np.abs(generator.normal(4.0, 1.5, size=(W, N))),
        "held_out": HeldOut(names=("held_out_judge",), rewards=generator.normal(size=(W, N, 1))),
        "baseline": Baseline(
            name="base model",
            rewards=offset + scale * base,
            completions=_texts(generator, W, N),
            lengths=generator.integers(12, 48, size=(W, N)),
            held_out_rewards=generator.normal(size=(W, N, 1)),
        ),
        "normalization": Normalization(mean=offset, std=scale, source="base model"),
        "reference_point": np.full(K, -1.2),
        "timings": {"generation": 41.2, "scoring": 3.9},
        "versions": {"moodpo": "0.1.0", "torch": "2.13.0"},
    }
    result = SweepResult(**(fields | changes))
    return analyze(result, num_resamples=60) if analyzed else result


def _texts(generator: np.random.Generator, W: int, N: int) -> tuple[tuple[str, ...], ...]:
    def text() -> str:
        body = generator.choice(SENTENCES, size=generator.integers(1, 5), replace=False)
        return " ".join([str(generator.choice(OPENERS)), *map(str, body)])

    return tuple(tuple(text() for _ in range(N)) for _ in range(W))
