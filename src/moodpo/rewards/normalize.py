"""Normalize: raw scores of different scales → scores that weights can trade off.

z = (reward − mean) / std, per objective. Knows nothing of scorers or weights.
Shapes: N texts, K objectives. NaN means "no score": ignored in statistics, NaN in the result.

An objective that does not vary has no scale: below a floor, `max(1, |mean|) · 1e-6`, its standard
deviation is rounding noise and the reward is only centered (divided by 1), never blown up.
Statistics are float64, and survive JSON bit for bit: a resumed run continues the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moodpo.choices import NORMALIZATIONS, NormalizerKind
from moodpo.errors import ConfigError, ManifestError, RewardError

__all__ = ["Moments", "Normalizer", "merge_moments", "moments", "standardize"]


RELATIVE_STD_FLOOR = 1e-6
"""Just above the rounding of float32 rewards (2⁻²⁴ ≈ 6e-8 of the mean)."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of each objective, NaN left out."""

    count: Tensor  # [K] float64
    mean: Tensor  # [K] float64
    m2: Tensor  # [K] float64: the sum of (reward - mean)^2

    @classmethod
    def empty(cls, num_objectives: int) -> Moments:
        """The moments of no samples."""
        return cls(*(torch.zeros(num_objectives, dtype=torch.float64) for _ in range(3)))

    def std(self) -> Tensor:
        """Population standard deviation `[K]`, zero where there are no samples."""
        return (self.m2 / self.count.clamp(min=1)).sqrt()

    def scale(self) -> Tensor:
        """What to divide by, `[K]`: the standard deviation, or 1 where nothing varies."""
        std = self.std()
        floor = RELATIVE_STD_FLOOR * self.mean.abs().clamp(min=1)
        return torch.where(std > floor, std, torch.ones_like(std))


def moments(rewards: Tensor) -> Moments:
    """The moments of a batch.

    Args:
        rewards: `[N, K]`, NaN where there is no score.

    Raises:
        RewardError: If a reward is infinite: it would make every later score NaN.
    """
    values = rewards.detach().to("cpu", torch.float64)
    if values.isinf().any():
        row, objective = torch.nonzero(values.isinf())[0].tolist()
        raise RewardError(
            f"The reward of row {row}, objective {objective} is infinite. "
            "Scorers must answer finite numbers, or NaN where there is no score."
        )
    known = ~values.isnan()
    count = known.sum(dim=0).double()
    mean = torch.where(known, values, 0.0).sum(dim=0) / count.clamp(min=1)
    m2 = torch.where(known, values - mean, 0.0).square().sum(dim=0)
    return Moments(count, mean, m2)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of samples together (Chan, Golub & LeVeque 1983, Eq. 2.1)."""
    count = a.count + b.count
    delta = b.mean - a.mean
    share = b.count / count.clamp(min=1)
    return Moments(count, a.mean + delta * share, a.m2 + b.m2 + delta.square() * a.count * share)


def standardize(rewards: Tensor, statistics: Moments) -> Tensor:
    """z-scores `[..., K]` in the dtype of the rewards `[..., K]`; NaN stays NaN."""
    mean, scale = (t.to(rewards.device) for t in (statistics.mean, statistics.scale()))
    return ((rewards.double() - mean) / scale).to(rewards.dtype)


class Normalizer:
    """Owns the statistics of a run.

    Args:
        kind: `none` changes nothing. `running` learns from every batch that it observes (Welford's
            update, batched): no setup, but early and late steps are scaled differently.
            `calibrate` z-scores by reference samples taken once, before the first step: one scale
            for the whole run.
        num_objectives: K.

    Raises:
        ConfigError: If the kind is unknown.
    """

    def __init__(self, kind: NormalizerKind, num_objectives: int) -> None:
        if kind not in NORMALIZATIONS:
            raise ConfigError(
                f"Unknown reward normalization {kind!r}. Use one of {', '.join(NORMALIZATIONS)}."
            )
        self.kind = kind
        self.num_objectives = num_objectives
        self.statistics = Moments.empty(num_objectives)
        self.best = torch.full((num_objectives,), -torch.inf, dtype=torch.float64)  # raw, so far

    def observe(self, rewards: Tensor) -> None:
        """Notes the best of raw rewards `[N, K]`; a `running` normalizer also learns its scale."""
        self._check_width(rewards)
        self._note_best(rewards)
        if self.kind == "running":
            self.statistics = merge_moments(self.statistics, moments(rewards))

    def calibrate(self, rewards: Tensor) -> None:
        """Takes the statistics of raw reference rewards `[N, K]`, replacing earlier ones.

        Only a `calibrate` normalizer does; the others ignore the samples.

        Raises:
            ConfigError: If an objective has no score at all among the samples.
        """
        self._check_width(rewards)
        self._note_best(rewards)
        if self.kind != "calibrate":
            return
        statistics = moments(rewards)
        for objective in torch.nonzero(statistics.count == 0).flatten().tolist()[:1]:
            raise ConfigError(
                f"Objective {objective} has no score in the {len(rewards)} reference samples. "
                "Calibrate on prompts that every reward can score."
            )
        self.statistics = statistics

    def normalize(self, rewards: Tensor) -> Tensor:
        """Normalized rewards `[..., K]` of raw rewards `[..., K]`; NaN stays NaN.

        A `running` normalizer that has seen nothing centers by 0 and scales by 1.

        Raises:
            ConfigError: If the kind is `calibrate` and `calibrate` was never called.
        """
        self._check_width(rewards)
        if self.kind == "none":
            return rewards
        if self.kind == "calibrate" and not self.statistics.count.any():
            raise ConfigError(
                "Reward normalization is 'calibrate' but there are no statistics. "
                "Call calibrate() with reference samples before the first step."
            )
        return standardize(rewards, self.statistics)

    def ideal(self) -> Tensor:
        """The best normalized reward of each objective so far `[K]`; 0 where there is none."""
        best = torch.where(self.best.isfinite(), self.normalize(self.best), 0.0)
        return best.float()

    def state_dict(self) -> dict[str, Any]:
        """The kind and the statistics as plain JSON values; `from_state_dict` restores them."""
        statistics = self.statistics
        return {
            "kind": self.kind,
            "num_objectives": self.num_objectives,
            "count": statistics.count.tolist(),
            "mean": statistics.mean.tolist(),
            "m2": statistics.m2.tolist(),
            "best": [value if value > -torch.inf else None for value in self.best.tolist()],
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Normalizer:
        """A normalizer that goes on exactly where the saved one stopped.

        Raises:
            ManifestError: If entries are missing or have another length than the objectives.
        """
        try:
            normalizer = cls(state["kind"], int(state["num_objectives"]))
            tensors = [
                torch.tensor(state[key], dtype=torch.float64) for key in ("count", "mean", "m2")
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(
                f"The saved normalizer is damaged ({error!r}). Restore it from another checkpoint."
            ) from error
        if any(t.shape != (normalizer.num_objectives,) for t in tensors):
            raise ManifestError(
                f"The saved normalizer has statistics of shapes {[tuple(t.shape) for t in tensors]}"
                f" for {normalizer.num_objectives} objectives. Restore it from another checkpoint."
            )
        normalizer.statistics = Moments(*tensors)
        saved = state.get("best", [None] * normalizer.num_objectives)
        best = [-torch.inf if value is None else value for value in saved]
        normalizer.best = torch.tensor(best, dtype=torch.float64)
        return normalizer

    def _note_best(self, rewards: Tensor) -> None:
        values = rewards.detach().to("cpu", torch.float64).nan_to_num(nan=-torch.inf)
        if len(values):
            self.best = torch.maximum(self.best, values.amax(dim=0))

    def _check_width(self, rewards: Tensor) -> None:
        if rewards.shape[-1] != self.num_objectives:
            raise ConfigError(
                f"Rewards have {rewards.shape[-1]} columns but the normalizer was made for "
                f"{self.num_objectives} objectives. Pass one column per objective, in order."
            )
