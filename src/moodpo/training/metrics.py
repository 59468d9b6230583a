"""Metrics: what a run reports, as sums and counts on every device with one reduction per log.

Knows nothing of models. A metric is a weighted mean: what is added are sums and how many values
they sum; padding is never counted because it is never added. `METRICS` says what each means.
Shapes: B prompts, M weight vectors of each, g completions under each, K objectives, P pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from moodpo.core.pairing import matched_log_importance
from moodpo.models.logps import CompletionLogps
from moodpo.records import PairBatch, RolloutBatch
from moodpo.rewards.panel import RewardPanel
from moodpo.training.pairs import PairStatistics

__all__ = [
    "METRICS",
    "MetricStore",
    "PhaseClock",
    "metrics_page",
    "record_pairs",
    "record_rollout",
    "record_work",
    "with_deviations",
]

METRICS: Mapping[str, str] = {
    "loss": "The preference loss, mean over the active pairs of a step; log 2 = 0.693 at first.",
    "objective/NAME/mean": "Mean raw reward of the completions that were sampled.",
    "objective/NAME/std": "Standard deviation of that reward; near 0 there is nothing to learn.",
    "utility/chosen": "Mean utility of the better completion, in normalized rewards.",
    "utility/rejected": "Mean utility of the worse one.",
    "pairs/active": "Share of pairs that train. What is missing are the next three.",
    "pairs/ties": "Share of pairs whose completions are worth the same.",
    "pairs/duplicates": "Share of pairs whose completions are the same tokens.",
    "pairs/undefined": "Share of pairs with fewer than two finite utilities.",
    "pairs/flipped": "Share of prompts whose winner is another under the other weights.",
    "rewards/chosen": "Implicit reward of the chosen: β log π/π_ref, in nats times β.",
    "rewards/rejected": "Implicit reward of the rejected.",
    "rewards/margins": "The difference of the two; grows while the policy learns.",
    "rewards/accuracies": "Share of pairs whose margin is above 0; 0.5 is chance.",
    "kl": "log π/π_ref of the policy's own completions in nats: a Monte Carlo estimate of KL.",
    "entropy": "Entropy of the policy's next token in nats, mean over its completions' tokens.",
    "relabel/log_importance": "How much likelier relabeled completions are under the other weights "
    "than under their own, in nats per token; far below 0 they are off-policy.",
    "score/cache_hits": "Share of completions whose scores were remembered.",
    "score/cut": "Share of texts that did not fit a reward model whole.",
    "completions/mean_length": "Mean length of completions in tokens, the end included.",
    "completions/truncated": "Share of completions that were cut at max_new_tokens.",
    "time/generate": "Seconds of a step spent on sampling.",
    "time/score": "Seconds of a step spent on rewards.",
    "time/reference": "Seconds of a step spent on the reference's log-probabilities.",
    "time/train": "Seconds of a step spent on forward and backward passes.",
    "tokens_per_second": "Completion tokens per second, everything counted.",
}
"""Name -> meaning of all that is logged beside the Trainer's own metrics. NAME is an objective.
Evaluations have the same with the prefix `eval_`."""

Reduce = Callable[[Tensor], Tensor]


def metrics_page() -> str:
    """`docs/metrics.md`, made of `METRICS`."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in METRICS.items()]
    return "\n".join([_HEAD, "| metric | what it is |", "|---|---|", *rows, ""])


_HEAD = """\
# Metrics

What `moodpo train` logs to the trackers and to `metrics.jsonl`, beside the Trainer's own
(`learning_rate`, `grad_norm`, `epoch`). Each is a mean since the last log, over all processes.
Evaluations on held-out prompts log the same under `eval_`; with a sweep also `eval_hypervolume`,
`eval_steerability` and `eval_steerability/NAME`.

This page is made from the table in `training/metrics.py`.
"""


class MetricStore:
    """Means that can be added to piecewise and are reduced over all processes at once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """Adds `count` values whose sum is `total`; tensors stay on their device, unsynced."""
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count

    def add_values(self, name: str, values: Tensor) -> None:
        """Adds the finite ones among values of any shape."""
        finite = values.isfinite()
        self.add(name, values.where(finite, torch.zeros_like(values)).sum(), finite.sum())

    @property
    def names(self) -> list[str]:
        """What was added since the last `pop_means`, sorted."""
        return sorted(self._sums)

    def complete(self, names: Iterable[str]) -> None:
        """Adds no value to each name, so that processes can add up stores of the same names.

        A process without a pair to train has fewer metrics than the others.
        """
        for name in names:
            self.add(name, 0.0, 0)

    def pop_means(self, reduce: Reduce = lambda stacked: stacked) -> dict[str, float]:
        """All means since the last call, and forgets them.

        Args:
            reduce: Sums a tensor over processes. Every process must have added the same names.

        Returns:
            A mean per name; names without any value are left out.
        """
        if not self._sums:
            return {}
        names = self.names
        stacked = torch.tensor(
            [[float(self._sums[n]), float(self._counts[n])] for n in names], dtype=torch.float64
        )
        stacked = reduce(stacked)
        self._sums, self._counts = {}, {}
        return {n: (s / c).item() for n, (s, c) in zip(names, stacked, strict=True) if c > 0}

    def state_dict(self) -> dict[str, list[float]]:
        """Sums and counts, so that a resumed run's first log is the uninterrupted one's."""
        return {n: [float(self._sums[n]), float(self._counts[n])] for n in sorted(self._sums)}

    def load_state_dict(self, state: Mapping[str, Sequence[float | None]]) -> None:
        """Restores what `state_dict` returned."""
        # JSON has no NaN: a sum that was one is null.
        values = {n: [math.nan if v is None else v for v in pair] for n, pair in state.items()}
        self._sums = {n: total for n, (total, _) in values.items()}
        self._counts = {n: count for n, (_, count) in values.items()}


def with_deviations(means: Mapping[str, float]) -> dict[str, float]:
    """Turns the mean square of each objective into its standard deviation."""
    result = dict(means)
    for name in means:
        if name.startswith("objective/") and name.endswith("/square"):
            stem = name.removesuffix("/square")
            variance = result.pop(name) - means[f"{stem}/mean"] ** 2
            result[f"{stem}/std"] = max(variance, 0.0) ** 0.5
    return result


def record_rollout(
    store: MetricStore,
    rollout: RolloutBatch,
    pairs: PairBatch,
    statistics: PairStatistics,
    objectives: Sequence[str],
) -> None:
    """Adds what was sampled, and what became of it.

    Args:
        store: Added to.
        rollout: B prompts.
        pairs: The P that train.
        statistics: Of all that might have.
        objectives: K names.
    """
    for k, name in enumerate(objectives):
        values = rollout.rewards[..., k].double()  # [B, M, g]
        # Exact sums: of a constant reward the deviation must come out as 0.
        store.add_values(f"objective/{name}/mean", values)
        store.add_values(f"objective/{name}/square", values**2)
    store.add_values("utility/chosen", pairs.utilities[:, 0])
    store.add_values("utility/rejected", pairs.utilities[:, 1])
    for name in ("active", "ties", "duplicates", "undefined"):
        store.add(f"pairs/{name}", getattr(statistics, name), statistics.labeled)
    store.add("pairs/flipped", statistics.flipped, statistics.relabeled)
    completions = [c for row in rollout.candidates for c in row]
    store.add(
        "completions/mean_length", sum(len(c.token_ids) for c in completions), len(completions)
    )
    store.add("completions/truncated", sum(not c.finished for c in completions), len(completions))


def record_pairs(
    store: MetricStore, pairs: PairBatch, scored: CompletionLogps, *, beta: float
) -> None:
    """Adds what the policy says of pairs.

    Args:
        store: Added to.
        pairs: P, with the reference's log-probabilities.
        scored: The policy's, of the 2P completions, with entropies.
        beta: Of the loss, per nat.
    """
    assert pairs.ref_logps is not None
    assert scored.entropies is not None
    policy_logps, lengths = scored.logps.detach().view(-1, 2), scored.lengths.view(-1, 2)
    logratios = policy_logps - pairs.ref_logps  # [P, 2]
    implicit, own = beta * logratios, ~pairs.relabeled  # [P, 2]
    store.add_values("rewards/chosen", implicit[:, 0])
    store.add_values("rewards/rejected", implicit[:, 1])
    store.add_values("rewards/margins", implicit[:, 0] - implicit[:, 1])
    store.add_values("rewards/accuracies", (implicit[:, 0] > implicit[:, 1]).float())
    # Relabeled completions were sampled under other weights: they say nothing of this policy.
    store.add("kl", logratios[own].sum(), own.sum())
    store.add("entropy", scored.entropies.view(-1, 2)[own].sum(), lengths[own].sum())
    importance = matched_log_importance(
        policy_logps,
        lengths,
        prompts=pairs.rows,
        candidates=pairs.candidates,
        relabeled=pairs.relabeled,
    )
    store.add("relabel/log_importance", importance.sum(), importance.numel())


def record_work(
    store: MetricStore, rollout: RolloutBatch, panel: RewardPanel, clock: PhaseClock
) -> None:
    """Adds what a rollout took: scores remembered and cut, seconds, tokens per second.

    Seconds are of everything since the last rollout: its generation, and the training before it.

    Args:
        store: Added to.
        rollout: Whose tokens count.
        panel: Its counts start anew.
        clock: Likewise.
    """
    hits, misses = panel.cache.pop_counts()
    store.add("score/cache_hits", hits, hits + misses)
    store.add("score/cut", *panel.pop_cuts())
    seconds = clock.pop()
    for phase in ("generate", "score", "reference", "train"):
        store.add(f"time/{phase}", seconds.get(phase, 0.0))
    tokens = sum(len(c.token_ids) for row in rollout.candidates for c in row)
    store.add("tokens_per_second", tokens, sum(seconds.values()))


class PhaseClock:
    """Seconds per phase of a step; tells a listener which phase has begun."""

    def __init__(self, listener: Callable[[str], None] = lambda _: None) -> None:
        self.seconds: dict[str, float] = {}
        self.listener = listener

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times what happens within it."""
        self.listener(phase)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """Seconds per phase since the last call, and starts anew."""
        seconds, self.seconds = self.seconds, {}
        return seconds
