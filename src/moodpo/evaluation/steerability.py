"""Steerability: does the policy do what the weights ask for, and where does it not?

Knows nothing of models; computed from the rewards of a `SweepResult`. Shapes: W weights, N prompts,
K objectives, R resamples, L distinct levels of one objective's weight (L ≤ W).

Two rank correlations between the requested weight `w_k` and the obtained reward `r_k`, both
Spearman's (1904) with average ranks for ties:

- `spearman_within_prompt`, **the headline**: within each prompt, over its W answers; then the mean
  over prompts. It says what a user meets who turns the knob on his own prompt. Differences
  between prompts cannot enter; noise pulls it towards 0 and more prompts do not push it up; its
  chance level is 0 with a spread of `1 / sqrt(N (W - 1))`. A prompt whose answers all score alike
  counts 0: an answer that does not change was not steered.
- `spearman_of_means`: over the W mean rewards. It says whether the curve that a plot shows rises.
  Averaging removes the noise, so with enough prompts it reaches 1 for an effect of any size, and
  without any effect it still spreads by `1 / sqrt(W - 1)`: 0.32 for 11 weights.

Where several weight vectors share one `w_k` (three objectives or more), both equal what
`scipy.stats.spearmanr` gives for the same columns; 1 needs a reward that follows `w_k` alone.

`steerability` of `results.json`; every number is `{"value", "low", "high"}` unless said:

| key | content |
|---|---|
| `mean` | the headline, averaged over objectives (equals `spearman_within_prompt`) |
| `spearman_within_prompt`, `spearman_of_means` | averaged over objectives |
| `headline` | the text `"spearman_within_prompt"` |
| `crd` | see `conditional_reward_determinant` |
| `objectives` | by name, the keys below |
| `· spearman_within_prompt`, `· spearman_of_means` | of this objective |
| `· corner_gap` | raw reward at its own end of the sweep minus at the other objectives' ends |
| `· effect_size` | the same in standard deviations of the base model's answers (Glass's Δ) |
| `· corner_win_rate` | how often the own end beats another end on the same prompt, ties half |
| `· range` | highest minus lowest mean over the weights, in standard deviations |
| `· curve` | `{"weights": [L], "rewards": [L] of raw means}` per level of `w_k` |
| `· violations` | plain share of neighboring levels where the mean falls |
| `· violations_beyond_noise` | plain share where it falls beyond noise (Bonferroni) |
| `· dead_zone` | `{"from", "to", "share"}`: longest stretch of `w_k` without a rise beyond noise |

Levels are the distinct values of `w_k`; where a sweep has more than `MAX_LEVELS` of them, they are
gathered in as many even bins.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moodpo.errors import InputError
from moodpo.evaluation.bootstrap import interval, intervals, present_means, resampled_means
from moodpo.evaluation.results import FloatArray, SweepResult
from moodpo.evaluation.statistics import Resampling

__all__ = [
    "HEADLINE",
    "average_ranks",
    "conditional_reward_determinant",
    "encoding_sensitivity",
    "mean_over_objectives",
    "rank_correlation",
    "spearman_of_means",
    "spearman_within_prompt",
    "steerability_metrics",
]

HEADLINE = "spearman_within_prompt"
"""The correlation behind `steerability["mean"]` and `--fail-under steerability=...`."""

MAX_LEVELS = 21


def steerability_metrics(
    result: SweepResult, resampling: Resampling | None = None
) -> dict[str, Any]:
    """Everything under `steerability` of the results.

    Args:
        result: The sweep.
        resampling: Of the result's N prompts; 1,000 resamples with seed 0 when None.

    Returns:
        The table in the module's docstring.
    """
    resampling = resampling or Resampling.of(result.num_prompts)
    within = spearman_within_prompt(result.weights, result.rewards)  # [N, K]
    curves = _spearman_of_means_stacks(result, resampling)
    correlations = {
        "spearman_within_prompt": mean_over_objectives(within, resampling),
        "spearman_of_means": _interval_of([stack.mean(axis=-1) for stack in curves], resampling),
    }
    return {
        "mean": correlations[HEADLINE],
        "headline": HEADLINE,
        **correlations,
        "crd": _crd_interval(result, resampling),
        "objectives": {
            name: {
                "spearman_within_prompt": resampling.mean_interval(within[:, k]),
                "spearman_of_means": _interval_of([stack[:, k] for stack in curves], resampling),
                **_response(result, k, resampling),
            }
            for k, name in enumerate(result.objectives)
        },
    }


def spearman_within_prompt(weights: ArrayLike, rewards: ArrayLike) -> FloatArray:
    """Rank correlation of requested weight and obtained reward, for each prompt by itself.

    Args:
        weights: `[W, K]`.
        rewards: `[W, N, K]`, NaN where there is no score (the weight is left out for this prompt).

    Returns:
        `[N, K]` in [-1, 1]; 0 where all rewards tie; NaN where fewer than two different weights
        have a score.

    Raises:
        InputError: If the shapes disagree.
    """
    requests, values = _weights_and_rewards(weights, rewards)
    answers = np.moveaxis(values, 0, -1)  # [N, K, W]
    asked = np.broadcast_to(requests.T, answers.shape)
    return rank_correlation(asked, answers)


def spearman_of_means(weights: ArrayLike, rewards: ArrayLike) -> FloatArray:
    """Rank correlation of requested weight and mean reward over the prompts.

    Args:
        weights: `[W, K]`.
        rewards: `[W, N, K]`, NaN where there is no score.

    Returns:
        `[K]`, as `spearman_within_prompt` for a single prompt.

    Raises:
        InputError: If the shapes disagree.
    """
    requests, values = _weights_and_rewards(weights, rewards)
    means = _over_prompts(values)
    return rank_correlation(requests.T, means.T)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Spearman's rank correlation along the last axis, average ranks for ties.

    Pairs with a NaN on either side are left out.

    Args:
        first: `[..., W]`, the requested weights.
        second: `[..., W]`, the obtained rewards.

    Returns:
        `[...]`. Where all of `second` tie: 0. Where fewer than two different values of `first`
        remain: NaN.
    """
    asked, got = np.broadcast_arrays(np.asarray(first, float), np.asarray(second, float))
    missing = np.isnan(asked) | np.isnan(got)
    x = _centered(average_ranks(np.where(missing, np.nan, asked)))
    y = _centered(average_ranks(np.where(missing, np.nan, got)))
    covariance = (x * y).sum(axis=-1)
    x_squares, y_squares = (x * x).sum(axis=-1), (y * y).sum(axis=-1)
    scale = np.sqrt(x_squares * y_squares)
    result: FloatArray = np.divide(covariance, scale, out=np.zeros(scale.shape), where=scale > 0)
    return np.where(x_squares > 0, np.clip(result, -1.0, 1.0), np.nan)


def average_ranks(values: ArrayLike) -> FloatArray:
    """Ranks from 1 along the last axis; ties share the mean of their ranks.

    Args:
        values: `[..., W]`; a NaN is skipped and stays NaN.

    Returns:
        The same shape.
    """
    data = np.asarray(values, dtype=np.float64)
    ranks = np.full(data.shape, 0.5)
    for w in range(data.shape[-1]):
        other = data[..., w : w + 1]
        ranks += (other < data) + 0.5 * (other == data)
    return np.where(np.isnan(data), np.nan, ranks)


def conditional_reward_determinant(normalized_rewards: ArrayLike) -> float:
    """CRD: mean over the weights of `det Cov(s | w)` (MI-EPO, arXiv 2607.01392).

    The volume that the answers to one request fill in reward space: where it is large against
    the distance between requests, answers to different requests overlap.

    Args:
        normalized_rewards: `[W, N, K]`; answers with a NaN are left out.

    Returns:
        The mean determinant (sample covariance over prompts); NaN if a weight has fewer than two
        complete answers.
    """
    values = np.asarray(normalized_rewards, dtype=np.float64)
    return float(_determinants(values, np.ones((1, values.shape[1])))[0])


def encoding_sensitivity(result: SweepResult, other: SweepResult) -> dict[str, Any]:
    """How much the answers depend on how the same weights were written.

    For two sweeps of one policy that differ only in the encoding: decimals, the order of the
    objectives, prompts that imitate an instruction. Objectives are matched by name and weight
    vectors by value; prompts are matched by position, so that their text may differ.

    Args:
        result: The sweep with the usual encoding; its units are used.
        other: The sweep with the other encoding.

    Returns:
        By objective name and for `mean` (over objectives): `mean_difference`, the mean over
        weights of the absolute difference of mean rewards, in standard deviations;
        `expected_from_noise`, what that would be if the encodings were equivalent; and
        `rank_agreement`, Spearman's correlation of the two curves over the weights.

    Raises:
        InputError: If objectives, weights or the number of prompts differ.
    """
    columns, rows = _alignment(result, other)
    ours = result.normalize(result.rewards)
    theirs = result.normalize(other.rewards[rows][:, :, columns])
    gaps = ours - theirs  # [W, N, K]
    means = _over_prompts(gaps)  # [W, K]
    agreement = rank_correlation(_over_prompts(ours).T, _over_prompts(theirs).T)  # [K]
    table = {
        "mean_difference": np.abs(means).mean(axis=0),
        "expected_from_noise": np.sqrt(2 / np.pi) * _standard_errors(gaps).mean(axis=0),
        "rank_agreement": agreement,
    }
    by_name = {
        name: {key: float(column[k]) for key, column in table.items()}
        for k, name in enumerate(result.objectives)
    }
    return {"mean": {key: float(column.mean()) for key, column in table.items()}, **by_name}


def _response(result: SweepResult, k: int, resampling: Resampling) -> dict[str, Any]:
    """How objective k answers to its own weight."""
    levels, groups = _levels(result.weights[:, k])
    rewards = result.rewards[:, :, k]  # [W, N]
    # A level's reward per prompt: the mean over the weight vectors that share it.
    curve = np.stack([present_means(rewards[group].T) for group in groups])  # [L, N]
    means, replicates = present_means(curve), resampled_means(curve, resampling.counts)
    changes = np.diff(means)  # [L - 1]
    return {
        **_corners(result, k, resampling),
        "range": _range(result, k, resampling),
        "curve": {"weights": levels.tolist(), "rewards": means.tolist()},
        "violations": float((changes < 0).mean()) if len(changes) else float("nan"),
        "violations_beyond_noise": _falls(changes, np.diff(replicates), resampling.confidence),
        "dead_zone": _dead_zone(levels, means, replicates, resampling.confidence),
    }


def _falls(changes: FloatArray, replicates: FloatArray, confidence: float) -> float:
    """Share of steps that fall beyond noise, Bonferroni: a chance of one false alarm per curve."""
    if not len(changes):
        return float("nan")
    z = NormalDist().inv_cdf(1 - (1 - confidence) / 2 / len(changes))
    by_step = replicates.T  # [L - 1, R]
    errors = np.sqrt(present_means((by_step - present_means(by_step)[:, None]) ** 2))
    return float((changes + z * errors < 0).mean())


def _corners(result: SweepResult, k: int, resampling: Resampling) -> dict[str, Any]:
    """Reward at the end of the sweep that favors k most, against the others' ends."""
    ends = result.weights.argmax(axis=0)  # [K] rows
    others = sorted({int(end) for end in ends} - {int(ends[k])})
    if not others:
        missing = _point(float("nan"))
        return {"corner_gap": missing, "effect_size": missing, "corner_win_rate": missing}
    rewards = result.rewards[:, :, k]
    differences = rewards[ends[k]] - rewards[others]  # [E, N]
    gap = resampling.mean_interval(present_means(differences.T))
    wins = present_means(((np.sign(differences) + 1) / 2).T)  # [N]
    std = float(result.normalization.std[k])
    return {
        "corner_gap": gap,
        "effect_size": {key: bound / std for key, bound in gap.items()},
        "corner_win_rate": resampling.mean_interval(wins),
    }


def _range(result: SweepResult, k: int, resampling: Resampling) -> dict[str, float]:
    rewards = result.rewards[:, :, k] / result.normalization.std[k]  # [W, N]
    stacks = [
        np.ptp(resampled_means(rewards, counts), axis=1)
        for counts in (_everyone(rewards), resampling.counts, resampling.left_out)
    ]
    return _interval_of(stacks, resampling)


def _dead_zone(
    levels: FloatArray, means: FloatArray, replicates: FloatArray, confidence: float
) -> dict[str, float]:
    """The longest stretch of weight over which no rise can be shown.

    Levels i < j span a dead stretch if the interval of their difference reaches down to 0. One
    step of the sweep is the resolution, and fewer prompts make longer stretches: what is shown
    is what these data can vouch for.
    """
    longest = (float(levels[0]), float(levels[0]))
    for i in range(len(levels) - 1):
        rises = intervals(
            means[i + 1 :] - means[i],
            replicates[:, i + 1 :] - replicates[:, i : i + 1],
            confidence=confidence,
        )
        dead = [float(levels[i + 1 + j]) for j, rise in enumerate(rises) if not rise["low"] > 0]
        if dead and dead[-1] - levels[i] > longest[1] - longest[0]:
            longest = (float(levels[i]), dead[-1])
    axis = float(levels[-1] - levels[0])
    share = (longest[1] - longest[0]) / axis if axis > 0 else float("nan")
    return {"from": longest[0], "to": longest[1], "share": share}


def _determinants(values: FloatArray, counts: FloatArray) -> FloatArray:
    """Mean determinant of the covariances given a weight, `[W, N, K] -> [R]`."""
    complete: NDArray[np.bool_] = np.all(~np.isnan(values), axis=-1)  # [W, N]
    # Centered first: the product formula below loses digits far from 0.
    rows = np.where(complete[..., None], values, np.nan) - _over_prompts(values)[:, None]
    products = rows[..., :, None] * rows[..., None, :]  # [W, N, K, K]
    first = resampled_means(np.moveaxis(rows, 1, -1), counts)  # [R, W, K]
    second = resampled_means(np.moveaxis(products, 1, -1), counts)  # [R, W, K, K]
    drawn = np.tensordot(counts, complete.astype(np.float64), axes=(1, 1))  # [R, W]
    freedom = np.where(drawn > 1, drawn / np.maximum(drawn - 1, 1), np.nan)  # sample covariance
    covariances = (second - first[..., :, None] * first[..., None, :]) * freedom[..., None, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # LAPACK warns of NaN and denormals
        determinants: FloatArray = np.linalg.det(covariances).mean(axis=-1)
    return determinants


def _crd_interval(result: SweepResult, resampling: Resampling) -> dict[str, float]:
    rewards = result.normalize(result.rewards)
    stacks = [
        _determinants(rewards, counts)
        for counts in (np.ones((1, result.num_prompts)), resampling.counts, resampling.left_out)
    ]
    return _interval_of(stacks, resampling)


def _spearman_of_means_stacks(result: SweepResult, resampling: Resampling) -> list[FloatArray]:
    """The curve version on the data `[1, K]`, the resamples `[R, K]`, the jackknife `[G, K]`."""
    by_prompt = np.moveaxis(result.rewards, 1, -1)  # [W, K, N]
    stacks = []
    for counts in (_everyone(by_prompt), resampling.counts, resampling.left_out):
        means = resampled_means(by_prompt, counts)  # [R, W, K]
        stacks.append(rank_correlation(result.weights.T, means.swapaxes(1, 2)))
    return stacks


def _interval_of(stacks: list[FloatArray], resampling: Resampling) -> dict[str, float]:
    """The BCa interval of a statistic given on the data `[1]`, resamples and jackknife."""
    value, replicates, jackknife = stacks
    return interval(
        float(value[0]), replicates, jackknife=jackknife, confidence=resampling.confidence
    )


def mean_over_objectives(within: FloatArray, resampling: Resampling) -> dict[str, float]:
    """Mean over prompts per objective, then over objectives: a gap in one cannot tilt the mean.

    Args:
        within: `[N, K]`, NaN where there is no value.
        resampling: Of the N prompts.

    Returns:
        `{"value", "low", "high"}`.
    """
    value = present_means(within.T).mean()
    replicates = resampled_means(within.T, resampling.counts).mean(axis=-1)  # [R]
    return interval(float(value), replicates, confidence=resampling.confidence)


def _point(value: float) -> dict[str, float]:
    return {"value": value, "low": float("nan"), "high": float("nan")}


def _levels(column: FloatArray) -> tuple[FloatArray, list[NDArray[np.intp]]]:
    """Levels of one objective's weight, ascending, and the rows at each."""
    rounded = column.round(6)  # float32 weights of one level differ in the last digits
    levels = np.unique(rounded)
    if len(levels) > MAX_LEVELS:
        low, high = levels[0], levels[-1]
        bins = np.round((rounded - low) / (high - low) * (MAX_LEVELS - 1))
        groups = [np.flatnonzero(bins == index) for index in np.unique(bins)]
        return np.array([rounded[group].mean() for group in groups]), groups
    return levels, [np.flatnonzero(rounded == level) for level in levels]


def _centered(ranks: FloatArray) -> FloatArray:
    """Ranks minus their mean, 0 at the gaps, so that sums of products skip them."""
    present = ~np.isnan(ranks)
    filled = np.where(present, ranks, 0.0)
    counts = np.maximum(present.sum(axis=-1, keepdims=True), 1)
    return np.where(present, filled - filled.sum(axis=-1, keepdims=True) / counts, 0.0)


def _everyone(values: FloatArray) -> FloatArray:
    """The resample that draws each prompt once: `[1, N]` for values `[..., N]`."""
    return np.ones((1, values.shape[-1]))


def _over_prompts(values: FloatArray) -> FloatArray:
    """Means over prompts without gaps: `[W, N, K] -> [W, K]`."""
    return present_means(np.moveaxis(values, 1, -1))


def _standard_errors(values: FloatArray) -> FloatArray:
    """Standard error of the mean over prompts, `[W, N, K] -> [W, K]`; NaN below two values."""
    present = ~np.isnan(values)
    counts = present.sum(axis=1)
    squares = np.where(present, values - _over_prompts(values)[:, None], 0.0) ** 2
    degrees = np.where(counts > 1, counts - 1, np.nan)
    errors: FloatArray = np.sqrt(squares.sum(axis=1) / degrees / np.maximum(counts, 1))
    return errors


def _weights_and_rewards(weights: ArrayLike, rewards: ArrayLike) -> tuple[FloatArray, FloatArray]:
    requests, values = np.asarray(weights, np.float64), np.asarray(rewards, np.float64)
    shapes_fit = requests.ndim == 2 and values.ndim == 3
    if not shapes_fit or requests.shape != (values.shape[0], values.shape[2]):
        raise InputError(
            f"weights must be [W, K] and rewards [W, N, K]; got {list(requests.shape)} and "
            f"{list(values.shape)}."
        )
    return requests, values


def _alignment(result: SweepResult, other: SweepResult) -> tuple[list[int], list[int]]:
    """Columns and rows that bring `other` into the order of `result`."""
    if set(result.objectives) != set(other.objectives):
        raise InputError(
            f"Encodings of different objectives cannot be compared: {list(result.objectives)} "
            f"and {list(other.objectives)}."
        )
    if result.num_prompts != other.num_prompts:
        raise InputError(
            f"Both sweeps need the same prompts in the same order; got {result.num_prompts} and "
            f"{other.num_prompts} of them."
        )
    columns = [other.objectives.index(name) for name in result.objectives]
    theirs = [tuple(row) for row in other.weights[:, columns].round(6).tolist()]
    rows = []
    for row in result.weights.round(6).tolist():
        if tuple(row) not in theirs:
            raise InputError(
                f"Weights {row} are missing in the second sweep. Sweep both with one --weights."
            )
        rows.append(theirs.index(tuple(row)))
    return columns, rows
