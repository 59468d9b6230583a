"""Guards: is the policy better, or has it learned to please the reward models?

Looks at the answers themselves (length, variety, repetition), at what length alone explains, and
at rewards that training never saw. It measures and warns; it never changes a reward and knows
nothing of models. Shapes: W weights, N prompts, K objectives.

Words here are what whitespace separates, in lower case: crude, the same for every tokenizer.

`guard_metrics` fills `metrics["guard"]` of `results.json`, plain numbers, `[W]` each:

| key | content |
|---|---|
| `length` | mean completion tokens |
| `truncated_rate` | share of answers that were cut at the length limit, where it is known |
| `distinct_1`, `distinct_2` | distinct n-grams over all n-grams of the weight's answers |
| `duplicate_rate` | share of answers that repeat another prompt's answer |
| `empty_rate` | share of answers without a word |
| `baseline_*` | the same of the base model, where there is one |

and besides them `unchanged_rate` (share of prompts with one answer under all weights),
`length_slope` (`[K]`, standard deviations of reward per token), `length_controlled_points`
(`[W][K]` raw) and `length_controlled_hypervolume` (beside the plain one: what length does not
explain).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moodpo.errors import InputError
from moodpo.evaluation.front import hypervolume
from moodpo.evaluation.results import Baseline, FloatArray, SweepResult, mean_over_prompts

__all__ = [
    "distinct_n",
    "duplicate_rate",
    "guard_metrics",
    "guard_warnings",
    "length_by_weight",
    "length_controlled_rewards",
    "length_slopes",
    "unchanged_rate",
]

# Where a warning starts: ours, wide enough that a healthy policy stays silent.
MAX_DUPLICATE_RATE = 0.25
MAX_EMPTY_RATE = 0.05
MAX_MISSING_RATE = 0.01
MIN_DISTINCT_RATIO = 0.5
MAX_LENGTH_RATIO = 2.0
MIN_ANSWERS = 8  # fewer answers repeat each other by chance


def guard_metrics(result: SweepResult) -> dict[str, Any]:
    """Everything under `metrics["guard"]`.

    Args:
        result: The sweep.

    Returns:
        The table in the module's docstring.
    """
    metrics: dict[str, Any] = _answer_metrics(result)
    if result.baseline is not None:
        baseline = _answer_metrics(result.baseline)
        metrics |= {f"baseline_{name}": values for name, values in baseline.items()}
    controlled = mean_over_prompts(length_controlled_rewards(result.rewards, result.lengths))
    slopes = length_slopes(result.rewards, result.lengths) / result.normalization.std
    metrics["unchanged_rate"] = unchanged_rate(result.completions)
    metrics["length_slope"] = slopes.tolist()
    metrics["length_controlled_points"] = controlled.tolist()
    metrics["length_controlled_hypervolume"] = _hypervolume(result, controlled)
    return metrics


def guard_warnings(result: SweepResult) -> tuple[str, ...]:
    """What a reader must know before believing the numbers.

    Args:
        result: The sweep; with `metrics` of `statistics.front_metrics` where the check of trained
            against held-out rewards is wanted.

    Returns:
        Sentences, empty for a healthy sweep.
    """
    guard = guard_metrics(result)
    return (
        *_missing_scores(result),
        *_truncation(result),
        *_repetition(result, guard),
        *_variety(result, guard),
        *_length_shift(result, guard),
        *_ignored_weights(guard),
        *_divergence(result),
    )


def length_by_weight(lengths: ArrayLike) -> FloatArray:
    """Mean length of the answers to each request.

    Args:
        lengths: `[W, N]` completion tokens.

    Returns:
        `[W]`.
    """
    means: FloatArray = np.asarray(lengths, dtype=np.float64).mean(axis=1)
    return means


def length_slopes(rewards: ArrayLike, lengths: ArrayLike) -> FloatArray:
    """What one more token is worth to each reward, other things equal.

    A regression with a constant per prompt and a constant per weight vector: only differences
    within a prompt count, and a weight that makes answers longer **and** better is not mistaken
    for an effect of length.

    Args:
        rewards: `[W, N, K]`; prompts with a missing score are left out of the fit.
        lengths: `[W, N]` completion tokens.

    Returns:
        `[K]` reward per token; 0 where lengths do not vary.

    Raises:
        InputError: If the shapes disagree.
    """
    values, tokens = _rewards_and_lengths(rewards, lengths)
    slopes = np.zeros(values.shape[-1])
    for k in range(len(slopes)):
        complete = ~np.isnan(values[:, :, k]).any(axis=0)  # [N]
        x = _double_centered(tokens[:, complete])
        y = _double_centered(values[:, complete, k])
        squares = float((x * x).sum())
        # Centering leaves rounding dust behind where lengths are constant.
        slopes[k] = float((x * y).sum()) / squares if squares > 1e-9 else 0.0
    return slopes


def length_controlled_rewards(rewards: ArrayLike, lengths: ArrayLike) -> FloatArray:
    """Rewards as if every answer had the mean length, by `length_slopes`.

    Args:
        rewards: `[W, N, K]` raw.
        lengths: `[W, N]` completion tokens.

    Returns:
        `[W, N, K]`, NaN where the reward is.

    Raises:
        InputError: If the shapes disagree.
    """
    values, tokens = _rewards_and_lengths(rewards, lengths)
    excess = tokens - tokens.mean()  # [W, N]
    controlled: FloatArray = values - excess[..., None] * length_slopes(values, tokens)
    return controlled


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words over all of them (Li et al. 2016).

    Args:
        texts: The answers.
        n: Words per gram, at least 1.

    Returns:
        In (0, 1]; NaN where no text has n words.
    """
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.lower().split()
        grams.update(zip(*(words[i:] for i in range(n)), strict=False))
    total = grams.total()
    return len(grams) / total if total else float("nan")


def duplicate_rate(texts: Sequence[str]) -> float:
    """Share of answers that another answer repeats word for word.

    Args:
        texts: Answers to different prompts.

    Returns:
        In [0, 1].
    """
    counts = Counter(_words(text) for text in texts)
    repeated = sum(count for count in counts.values() if count > 1)
    return repeated / len(texts) if texts else 0.0


def unchanged_rate(completions: Sequence[Sequence[str]]) -> float:
    """Share of prompts whose answer is the same under every weight vector.

    Args:
        completions: `W x N` texts.

    Returns:
        In [0, 1]; NaN for a single weight vector.
    """
    if len(completions) < 2:
        return float("nan")
    by_prompt = zip(*completions, strict=True)
    same = [len({_words(text) for text in answers}) == 1 for answers in by_prompt]
    return sum(same) / len(same)


def _answer_metrics(answers: SweepResult | Baseline) -> dict[str, list[float]]:
    completions, lengths = answers.completions, answers.lengths
    if lengths is None:
        lengths = np.array([[len(text.split()) for text in row] for row in completions])
    cut = {} if answers.finished is None else {"truncated_rate": _truncated_rate(answers.finished)}
    return {
        "length": length_by_weight(lengths).tolist(),
        **cut,
        "distinct_1": [distinct_n(row, 1) for row in completions],
        "distinct_2": [distinct_n(row, 2) for row in completions],
        "duplicate_rate": [duplicate_rate(row) for row in completions],
        "empty_rate": [sum(not text.strip() for text in row) / len(row) for row in completions],
    }


def _truncated_rate(finished: NDArray[np.bool_]) -> list[float]:
    rates: list[float] = (1 - finished.mean(axis=1)).tolist()
    return rates


def _truncation(result: SweepResult) -> list[str]:
    """Nothing ended by itself: what length and rewards say then is of beginnings alone."""
    if result.finished is None or result.finished.any():
        return []
    return [
        f"All answers were cut at {result.lengths.max()} tokens: none ended by itself, so their "
        "length cannot follow the weights, and rewards saw beginnings. Raise max_new_tokens."
    ]


def _missing_scores(result: SweepResult) -> list[str]:
    missing = np.isnan(result.rewards).mean(axis=(0, 1))  # [K]
    return [
        f"{name} gave no score to {share:.1%} of the answers; they are left out of its means. "
        "Check the reward on the answers it skipped."
        for name, share in zip(result.objectives, missing, strict=True)
        if share > MAX_MISSING_RATE
    ]


def _repetition(result: SweepResult, guard: dict[str, Any]) -> list[str]:
    if result.num_prompts < MIN_ANSWERS:
        return []
    warnings = []
    allowed = guard.get("baseline_duplicate_rate", [0.0] * result.num_weights)
    worst = int(np.argmax(np.subtract(guard["duplicate_rate"], allowed)))
    rate = guard["duplicate_rate"][worst]
    if rate > max(MAX_DUPLICATE_RATE, 2 * allowed[worst]):
        warnings.append(
            f"Collapse: at {_request(result, worst)} {rate:.0%} of the answers repeat the answer "
            "to another prompt. Rewards there are not those of a usable policy; lower the "
            "learning rate or raise beta."
        )
    empty = int(np.argmax(guard["empty_rate"]))
    if guard["empty_rate"][empty] > MAX_EMPTY_RATE:
        warnings.append(
            f"Collapse: at {_request(result, empty)} {guard['empty_rate'][empty]:.0%} of the "
            "answers are empty. Raise min_new_tokens or add a reward that wants an answer."
        )
    return warnings


def _variety(result: SweepResult, guard: dict[str, Any]) -> list[str]:
    if "baseline_distinct_2" not in guard or result.num_prompts < MIN_ANSWERS:
        return []
    ratios = np.divide(guard["distinct_2"], guard["baseline_distinct_2"])
    if np.isnan(ratios).all() or np.nanmin(ratios) >= MIN_DISTINCT_RATIO:
        return []
    worst = int(np.nanargmin(ratios))
    return [
        f"Less variety: at {_request(result, worst)} the answers have {ratios[worst]:.0%} of the "
        "base model's distinct word pairs. Read some before trusting the rewards."
    ]


def _length_shift(result: SweepResult, guard: dict[str, Any]) -> list[str]:
    if result.baseline is None:
        return []
    # One ruler for both: words where the base model's tokens were not counted.
    ours = guard["length"] if result.baseline.lengths is not None else _word_lengths(result)
    ratios = np.divide(ours, np.maximum(guard["baseline_length"], 1e-9))
    worst = int(np.argmax(np.abs(np.log(np.maximum(ratios, 1e-9)))))
    if 1 / MAX_LENGTH_RATIO <= ratios[worst] <= MAX_LENGTH_RATIO:
        return []
    slopes = ", ".join(
        f"{name} {slope:+.3f}"
        for name, slope in zip(result.objectives, guard["length_slope"], strict=True)
    )
    return [
        f"Length: at {_request(result, worst)} answers are {ratios[worst]:.2g} times as long as "
        f"the base model's. One more token is worth (in std): {slopes}. Compare with the "
        "length-controlled points."
    ]


def _word_lengths(result: SweepResult) -> list[float]:
    return [float(np.mean([len(text.split()) for text in row])) for row in result.completions]


def _ignored_weights(guard: dict[str, Any]) -> list[str]:
    if not guard["unchanged_rate"] > 0.5:
        return []
    return [
        f"Weights ignored: {guard['unchanged_rate']:.0%} of the prompts get the same answer under "
        "every weight vector. Check that the policy was trained with this weight format."
    ]


def _divergence(result: SweepResult) -> list[str]:
    """Trained rewards up, held-out rewards down (Gao et al. 2023), both beyond noise."""
    gain = result.metrics.get("gain_mean_utility")
    held_out = result.metrics.get("gain_held_out", {})
    if not isinstance(gain, dict) or not gain["low"] > 0:
        return []
    return [
        f"Over-optimization: the trained rewards rose by {gain['value']:.2f} std while held-out "
        f"{name} fell by {-fall['value']:.3g} ({fall['low']:.3g} to {fall['high']:.3g}). Stop "
        "earlier, or raise beta."
        for name, fall in held_out.items()
        if fall["high"] < 0
    ]


def _request(result: SweepResult, row: int) -> str:
    weights = zip(result.objectives, result.weights[row], strict=True)
    return ", ".join(f"{name}={weight:.2g}" for name, weight in weights)


def _words(text: str) -> str:
    return " ".join(text.lower().split())


def _double_centered(values: FloatArray) -> FloatArray:
    """`[W, N]` minus its means per prompt and per weight: what neither constant explains."""
    if not values.size:
        return values
    centered: FloatArray = (
        values
        - values.mean(axis=0, keepdims=True)
        - values.mean(axis=1, keepdims=True)
        + values.mean()
    )
    return centered


def _hypervolume(result: SweepResult, points: FloatArray) -> float:
    if not np.isfinite(points).all():
        return float("nan")
    normalized = result.normalize(points)
    return hypervolume(normalized, reference_point=result.reference_point)


def _rewards_and_lengths(rewards: ArrayLike, lengths: ArrayLike) -> tuple[FloatArray, FloatArray]:
    values, tokens = np.asarray(rewards, np.float64), np.asarray(lengths, np.float64)
    if values.ndim != 3 or values.shape[:2] != tokens.shape:
        raise InputError(
            f"rewards must be [W, N, K] and lengths [W, N]; got {list(values.shape)} and "
            f"{list(tokens.shape)}."
        )
    return values, tokens
