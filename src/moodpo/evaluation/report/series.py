"""Series: what a figure draws of a sweep, and in which colors. No drawing library here.

Turns per-prompt rewards into points with intervals and weights into colors, so that the PNG and
the HTML report show the same marks. Knows nothing of axes, pixels or files. Shapes: W weight
vectors of a sweep, N texts (one per prompt), K objectives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moodpo.errors import ManifestError
from moodpo.evaluation.bootstrap import resample_counts, resampled_means

if TYPE_CHECKING:
    from moodpo.evaluation.results import FloatArray, SweepResult

__all__ = [
    "NEUTRAL_COLOR",
    "Estimate",
    "Series",
    "baseline_series",
    "objective_colors",
    "path_order",
    "series_colors",
    "staircase",
    "sweep_series",
    "weight_colors",
]

NUM_RESAMPLES = 1000
MAX_PLACES = 12  # on a steering curve, before scattered weights are gathered into tenths

# Every color keeps a contrast of 3:1 (WCAG 2.2, 1.4.11) on the light and on the dark page alike,
# which bounds its relative luminance to about 0.13-0.30; neighbors differ for the color-blind.
OBJECTIVE_COLORS = (
    *("#3a6fc4", "#d9722e", "#1d8f79", "#b4539b", "#8f7a12", "#3b93b8", "#c2504f", "#7d6fc9"),
)
NEUTRAL_COLOR = "#7d838c"  # what is not a policy under test: the base model
_MIDPOINT = "#b5588c"  # the two-objective ramp passes here rather than through gray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """One policy's marks on a figure: the plain arrays of a sweep under a name.

    Raises:
        ManifestError: If the arrays' shapes disagree.
    """

    name: str
    objectives: tuple[str, ...]  # K
    weights: FloatArray  # [W, K] requested
    rewards: FloatArray  # [W, N, K] raw, NaN where a reward gave no score

    def __post_init__(self) -> None:
        W, K = len(self.weights), len(self.objectives)
        expected = ((W, K), (W, self.rewards.shape[1] if self.rewards.ndim == 3 else "N", K))
        if (self.weights.shape, self.rewards.shape) != expected:
            raise ManifestError(
                f"Series {self.name!r}: expected weights [W, K] and rewards [W, N, K] with K = {K} "
                f"for {list(self.objectives)}; got weights {list(self.weights.shape)} and rewards "
                f"{list(self.rewards.shape)}."
            )

    def points(self) -> Estimate:
        """Mean raw reward per weight and objective `[W, K]`."""
        return _estimate(np.moveaxis(self.rewards, 1, -1))

    def curve(self, objective: int) -> tuple[FloatArray, Estimate]:
        """Mean raw reward of one objective along the weight that was asked for it.

        Weight vectors that agree on this objective's weight share a place: their rewards are
        averaged per prompt first, so that the interval is one over prompts. Where three or more
        objectives give scattered weights, those within a tenth share a place.

        Args:
            objective: Its index, below K.

        Returns:
            The P places, rising, and the estimates `[P]`.
        """
        asked = self.weights[:, objective]
        keys = np.round(asked, 6)
        if len(self.objectives) > 2 and len(np.unique(keys)) > MAX_PLACES:
            keys = np.round(asked, 1)
        groups = [np.flatnonzero(keys == key) for key in np.unique(keys)]
        rewards = self.rewards[:, :, objective]  # [W, N]
        per_prompt = [resampled_means(rewards[g].T, np.ones((1, len(g))))[0] for g in groups]
        return np.array([asked[g].mean() for g in groups]), _estimate(np.stack(per_prompt))


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """Means with the ends of their 95 % intervals, NaN where unknown; three arrays of one shape."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray


def _estimate(values: FloatArray) -> Estimate:
    """Means over the last axis (prompts) and their percentile bootstrap intervals.

    The resamples are those of `moodpo.evaluation.statistics`, so figures and tables agree. One
    prompt alone has no interval.
    """
    counts = resample_counts(values.shape[-1], num_resamples=NUM_RESAMPLES, seed=0)
    mean = resampled_means(values, np.ones((1, values.shape[-1])))[0]
    draws = resampled_means(values, counts)  # [R, ...]
    known = (~np.isnan(values)).sum(axis=-1) > 1
    low, high = np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    if known.any():
        low[known], high[known] = np.nanquantile(draws[:, known], [0.025, 0.975], axis=0)
    return Estimate(mean, low, high)


def sweep_series(result: SweepResult, name: str | None = None) -> Series:
    """The evaluated policy's series, named as the result names it unless told otherwise."""
    label = name or str(result.policy.get("name") or "policy")
    return Series(
        name=label, objectives=result.objectives, weights=result.weights, rewards=result.rewards
    )


def baseline_series(result: SweepResult) -> Series | None:
    """The base model's series, or None where the sweep had no baseline."""
    if result.baseline is None:
        return None
    return Series(
        name=result.baseline.name,
        objectives=result.objectives,
        weights=result.weights,
        rewards=result.baseline.rewards,
    )


def path_order(weights: FloatArray) -> list[int]:
    """The order in which a line visits the weights `[W, K]`: from the first objective's corner."""
    return [int(index) for index in np.lexsort(weights.T[::-1])[::-1]]


def staircase(points: FloatArray) -> FloatArray:
    """The corners of the region that two-objective points attain, both maximized.

    Args:
        points: `[W, 2]`; rows with NaN are left out.

    Returns:
        The non-dominated points `[M, 2]` by rising first objective, without repeats.
    """
    finite = points[~np.isnan(points).any(axis=1)]
    ordered = finite[np.lexsort((finite[:, 1], finite[:, 0]))[::-1]]
    corners: list[FloatArray] = []
    for point in ordered:
        if not corners or point[1] > corners[-1][1]:
            corners.append(point)
    return np.array(corners[::-1]).reshape(-1, 2)


def objective_colors(count: int) -> list[str]:
    """One color per objective; they repeat after eight.

    Args:
        count: K.
    """
    return [OBJECTIVE_COLORS[index % len(OBJECTIVE_COLORS)] for index in range(count)]


def series_colors(count: int) -> list[str]:
    """One color per series of an overlay: the first is what the others are compared with, neutral.

    Args:
        count: How many series.
    """
    return [NEUTRAL_COLOR, *objective_colors(max(0, count - 1))][:count]


def weight_colors(weights: FloatArray) -> list[str]:
    """One color per weight vector: each corner has its objective's color, the rest are mixtures.

    Mixtures are linear in OKLab (Ottosson 2020), where equal steps look equal. With two
    objectives the way leads over a third hue, so that the middle is not gray.

    Args:
        weights: `[W, K]` on the simplex.

    Returns:
        W colors as `#rrggbb`.
    """
    corners = np.array([_to_oklab(color) for color in objective_colors(weights.shape[1])])  # [K, 3]
    if weights.shape[1] == 2:
        middle = 2 * np.minimum(weights[:, :1], weights[:, 1:])  # [W, 1] 1 at an even split
        ends = np.clip(weights - middle / 2, 0.0, 1.0)
        return [_to_hex(lab) for lab in ends @ corners + middle * _to_oklab(_MIDPOINT)]
    return [_to_hex(lab) for lab in weights @ corners]


_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _to_oklab(color: str) -> FloatArray:
    encoded = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    lab: FloatArray = _LMS_TO_LAB @ np.cbrt(_RGB_TO_LMS @ linear)
    return lab


def _to_hex(lab: FloatArray) -> str:
    lms = np.linalg.solve(_LMS_TO_LAB, lab) ** 3
    linear = np.clip(np.linalg.solve(_RGB_TO_LMS, lms), 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(float(channel) * 255):02x}" for channel in encoded)
