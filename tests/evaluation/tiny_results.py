"""Sweep results built from arrays, for the tests of measures: every number is the test's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from moodpo.evaluation.results import Baseline, Normalization, SweepResult

LINE = np.stack([np.linspace(0, 1, 5), np.linspace(1, 0, 5)], axis=1)  # [5, 2]


def tiny_result(
    rewards: Any, weights: Any = LINE, *, base: Any = None, **changes: Any
) -> SweepResult:
    """A result around raw rewards `[W, N, K]`, in units that leave them as they are."""
    rewards = np.asarray(rewards, dtype=np.float64)
    W, N, K = rewards.shape
    texts = tuple(tuple(f"answer {w} to {n}" for n in range(N)) for w in range(W))
    fields: dict[str, Any] = {
        "objectives": tuple("abcdefgh"[:K]),
        "policy": {"name": "tiny"},
        "data": {"source": "test"},
        "weights": weights,
        "prompts": tuple(f"prompt {n}" for n in range(N)),
        "seeds": tuple(range(N)),
        "sampling": {"temperature": 1.0},
        "rewards": rewards,
        "completions": texts,
        "lengths": np.full((W, N), 4),
        "baseline": None
        if base is None
        else Baseline(name="base", rewards=np.asarray(base), completions=texts),
        "normalization": Normalization(mean=np.zeros(K), std=np.ones(K), source="test"),
        "reference_point": np.full(K, -1.0),
    }
    return SweepResult(**{**fields, **changes})


def steered(
    num_prompts: int = 40, *, effect: float = 1.0, noise: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Rewards `[5, N, 2]` on `LINE`: a prompt's share, `effect` times the weight, and noise."""
    generator = np.random.default_rng(seed)
    share = generator.normal(size=(1, num_prompts, 2))
    return effect * LINE[:, None, :] + share + noise * generator.normal(size=(5, num_prompts, 2))
