"""Bootstrap over prompts: how much a number would move had other prompts been drawn.

Knows nothing of what is measured. Prompts are the sampling unit: every answer to one prompt, under
all weights and by all policies compared, is kept together, which is what makes differences
paired. The intervals cover the choice of prompts and the sampling of answers; they do not cover
training: another training seed is another policy.

A resample is a row of counts, how often each prompt was drawn, so that the means of all resamples
are one matrix product. Shapes: R resamples, N prompts, W weights, K objectives.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moodpo.errors import InputError
from moodpo.evaluation.results import FloatArray

__all__ = [
    "interval",
    "intervals",
    "jackknife_counts",
    "present_means",
    "resample_counts",
    "resampled_means",
    "wilson_interval",
]

MAX_JACKKNIFE_GROUPS = 400


def resample_counts(num_prompts: int, *, num_resamples: int, seed: int) -> FloatArray:
    """Draws prompts with replacement (Efron 1979).

    Args:
        num_prompts: N, at least 1.
        num_resamples: R, at least 1.
        seed: Non-negative; the same seed draws the same prompts.

    Returns:
        `[R, N]` counts, every row summing to N.
    """
    generator = np.random.default_rng(seed)
    chances = np.full(num_prompts, 1.0 / num_prompts)
    counts = generator.multinomial(num_prompts, chances, size=num_resamples)
    return np.asarray(counts, dtype=np.float64)


def jackknife_counts(num_prompts: int) -> FloatArray:
    """Leaves out one prompt at a time, or one of 400 even groups of them when there are more.

    Args:
        num_prompts: N, at least 1.

    Returns:
        `[G, N]` counts of 0 and 1, G = min(N, 400).
    """
    groups = min(num_prompts, MAX_JACKKNIFE_GROUPS)
    group_of = np.arange(num_prompts) % groups  # [N]
    return np.asarray(group_of[None, :] != np.arange(groups)[:, None], dtype=np.float64)


def resampled_means(values: ArrayLike, counts: ArrayLike) -> FloatArray:
    """Means over prompts under each resample, without the missing values.

    Args:
        values: `[..., N]`, prompts last, NaN where a value is missing.
        counts: `[R, N]`.

    Returns:
        `[R, ...]`; NaN where a resample drew no prompt that has the value.
    """
    data, draws = np.asarray(values, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    present = ~np.isnan(data)
    sums = np.tensordot(draws, np.where(present, data, 0.0), axes=(1, -1))  # [R, ...]
    totals = np.tensordot(draws, present.astype(np.float64), axes=(1, -1))  # [R, ...]
    means: FloatArray = np.full(sums.shape, np.nan)
    np.divide(sums, totals, out=means, where=totals > 0)
    return means


def present_means(values: ArrayLike) -> FloatArray:
    """Means over the last axis without the missing values; NaN where all are.

    Args:
        values: `[..., N]`.

    Returns:
        `[...]`: `resampled_means` of the resample that draws each once.
    """
    data = np.asarray(values, dtype=np.float64)
    means: FloatArray = resampled_means(data, np.ones((1, data.shape[-1])))[0]
    return means


def interval(
    value: float,
    replicates: ArrayLike,
    *,
    jackknife: ArrayLike | None = None,
    confidence: float = 0.95,
) -> dict[str, float]:
    """A confidence interval: percentile, or BCa where the jackknife is given.

    BCa (Efron 1987) corrects the bias and the skew of statistics such as a hypervolume, which
    noise inflates: the plain percentile interval of such a statistic lies too high.

    Args:
        value: The statistic on the data itself.
        replicates: `[R]` on the resamples; NaN replicates are left out.
        jackknife: `[G]` on the data without one group of prompts each.
        confidence: In (0, 1).

    Returns:
        `{"value", "low", "high"}` with low ≤ value ≤ high (a percentile interval that misses its
        value is widened to it); low and high are NaN if the value or all replicates are.

    Raises:
        InputError: If the confidence is not in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence must be between 0 and 1; got {confidence}. Pass e.g. 0.95.")
    draws = np.asarray(replicates, dtype=np.float64)
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not draws.size:
        return {"value": float(value), "low": math.nan, "high": math.nan}
    levels = (0.5 - confidence / 2, 0.5 + confidence / 2)
    if jackknife is not None:
        levels = _bca_levels(float(value), draws, np.asarray(jackknife, dtype=np.float64), levels)
    low, high = np.quantile(draws, levels)
    return {"value": float(value), "low": min(float(low), value), "high": max(float(high), value)}


def intervals(values: ArrayLike, replicates: ArrayLike, *, confidence: float = 0.95) -> Any:
    """Percentile intervals of an array of statistics.

    Args:
        values: `[...]`.
        replicates: `[R, ...]`.
        confidence: In (0, 1).

    Returns:
        Nested lists of `{"value", "low", "high"}` with the shape of the values.
    """
    data, draws = np.asarray(values, dtype=np.float64), np.asarray(replicates, dtype=np.float64)
    if data.ndim == 0:
        return interval(float(data), draws, confidence=confidence)
    return [intervals(data[i], draws[:, i], confidence=confidence) for i in range(len(data))]


def wilson_interval(share: float, count: int, *, confidence: float = 0.95) -> dict[str, float]:
    """Score interval of a proportion (Wilson 1927): sound at 0 and 1, where a bootstrap is not.

    Args:
        share: Observed proportion in [0, 1]; halves (ties) make it conservative.
        count: Independent observations behind it.
        confidence: In (0, 1).

    Returns:
        `{"value", "low", "high"}`; all NaN for a count of 0.
    """
    if count == 0 or math.isnan(share):
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    # Rounding must not push the interval past the value at 0 or 1.
    low, high = min(share, max(0.0, center - half)), max(share, min(1.0, center + half))
    return {"value": share, "low": low, "high": high}


def _bca_levels(
    value: float, draws: FloatArray, jackknife: FloatArray, levels: tuple[float, float]
) -> tuple[float, float]:
    """The quantile levels of the bias-corrected and accelerated interval (Efron 1987)."""
    normal = NormalDist()
    # Half of the ties, and never exactly 0 or 1: both keep a discrete statistic finite.
    below = ((draws < value).mean() + (draws <= value).mean()) / 2
    edge = 0.5 / len(draws)
    bias = normal.inv_cdf(float(np.clip(below, edge, 1 - edge)))
    acceleration = _acceleration(jackknife)
    adjusted = [_adjust(normal.inv_cdf(level), bias, acceleration) for level in levels]
    return normal.cdf(adjusted[0]), normal.cdf(adjusted[1])


def _acceleration(jackknife: FloatArray) -> float:
    kept = jackknife[~np.isnan(jackknife)]
    deviations = kept.mean() - kept if kept.size else kept
    largest = float(np.abs(deviations).max(initial=0.0))
    if largest < 1e-100:  # no variation, or rounding dust whose powers underflow
        return 0.0
    deviations = deviations / largest  # the ratio below has no scale
    squares = float((deviations**2).sum())
    return float((deviations**3).sum()) / (6 * math.sqrt(squares) ** 3)


def _adjust(normal_level: float, bias: float, acceleration: float) -> float:
    shifted = bias + normal_level
    scale = 1 - acceleration * shifted
    # Beyond the pole the correction has no meaning; the bias correction alone is kept there.
    return bias + (shifted / scale if scale > 0 else shifted)
