"""Weights: what may be asked of a policy, read from text, checked, and rounded to be written.

Training, `generate`, `chat`, sweeps and Python all pass here, so that the same numbers are always
the same text. Knows nothing of words or prompts. Shapes: K objectives.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Sequence
from ctypes import c_float
from difflib import get_close_matches
from typing import Any

from moodpo.containers import as_number, rows_of, values_by_name, values_in_order
from moodpo.errors import WeightsError

__all__ = [
    "MILLION",
    "Millionths",
    "apportion",
    "check_names",
    "parse_weights",
    "to_millionths",
    "validate_weights",
    "weight_rows",
    "wrong_count",
]

SUM_TOLERANCE = 1e-3
MILLION = 1_000_000  # of what weights are written in: nothing finer changes a text

Millionths = Sequence[int]
"""Weights in millionths, K or those of the objectives that a part of a text speaks of."""


def parse_weights(text: str, objectives: Sequence[str]) -> tuple[float, ...]:
    """Reads `helpful=0.7,harmless=0.3`; names left out weigh 0.

    Args:
        text: Comma-separated `NAME=VALUE`.
        objectives: Known names, in order.

    Returns:
        Weights in the order of `objectives`, as `validate_weights`.

    Raises:
        WeightsError: If a part is malformed, or as `validate_weights`.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise WeightsError(
                f"Cannot read {part!r} in the weights {text!r}. Write NAME=VALUE, comma-separated, "
                f"as in {','.join(f'{n}={1 / len(objectives):.2g}' for n in objectives)}."
            ) from None
        if name.strip() in weights:
            raise WeightsError(f"The weights {text!r} name {name.strip()!r} twice. Name it once.")
        weights[name.strip()] = number
    return validate_weights(weights, objectives)


def validate_weights(weights: Any, objectives: Sequence[str]) -> tuple[float, ...]:
    """Checks objective weights and scales them to sum to 1.

    Args:
        weights: By name (missing names weigh 0): a mapping, or another container whose values have
            names, such as a pandas Series. Or K values in the order of `objectives`.
        objectives: Known names, in order.

    Returns:
        K weights on the simplex. Warns if the sum was off by more than 1e-3.

    Raises:
        WeightsError: On unknown names, a wrong count, negative or non-finite values, or all zero.
    """
    named = values_by_name(weights, objectives)
    if named is not None:
        check_names(named, objectives, what="in the weights")
        values = [as_number(named.get(name, 0.0), name) for name in objectives]
    else:
        given = values_in_order(weights, objectives)
        if len(given) != len(objectives):
            raise WeightsError(wrong_count(len(given), objectives))
        values = [as_number(w, name) for w, name in zip(given, objectives, strict=True)]
    for name, value in zip(objectives, values, strict=True):
        if not 0 <= value < math.inf:
            raise WeightsError(
                f"The weight of {name!r} is {value}; weights must be finite and at least 0. To ask "
                "for less of an objective, raise the weights of the others."
            )
    try:
        total = math.fsum(values)
    except OverflowError:
        raise WeightsError(
            f"The weights {', '.join(f'{v:g}' for v in values)} sum to more than a number can "
            "hold. Write them as shares of 1."
        ) from None
    if total <= 0:
        raise WeightsError("All weights are 0. Give at least one objective a positive weight.")
    if abs(total - 1) > SUM_TOLERANCE:
        warnings.warn(f"Objective weights sum to {total:g}; normalized to 1.", stacklevel=2)
    return tuple(value / total + 0.0 for value in values)  # no -0


def weight_rows(weights: Any, objectives: Sequence[str], *, count: int) -> list[tuple[float, ...]]:
    """One weight vector for every prompt: what Python callers pass.

    Args:
        weights: One vector for all, as for `validate_weights`; or N of them: an array or tensor
            `[N, K]`, a list whose rows are vectors of any kind, or a table with a column per
            objective.
        objectives: K names, in order.
        count: N prompts.

    Returns:
        N vectors, as `validate_weights`.

    Raises:
        WeightsError: As `validate_weights`, naming the row; or if there is another number of rows.
    """
    rows = rows_of(weights)
    if rows is None:
        return [validate_weights(weights, objectives)] * count
    if len(rows) != count:
        raise WeightsError(
            f"objective_weights has {len(rows)} rows but there are {count} prompts. Pass one row "
            "per prompt, or one weight vector for all."
        )
    vectors = []
    for number, row in enumerate(rows, start=1):
        try:
            vectors.append(validate_weights(row, objectives))
        except WeightsError as error:
            raise WeightsError(f"objective_weights, row {number}: {error}") from None
    return vectors


def check_names(names: Collection[str], objectives: Sequence[str], *, what: str) -> None:
    """Refuses names that are no objectives.

    Raises:
        WeightsError: Naming the first, and what it may have meant.
    """
    for name in names:
        if name not in objectives:
            close = get_close_matches(name, objectives, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise WeightsError(
                f"Unknown objective {name!r} {what}; this policy knows "
                f"{', '.join(objectives)}.{hint}"
            )


def wrong_count(given: int, objectives: Sequence[str]) -> str:
    """What to say of a weight vector of another length."""
    return (
        f"objective_weights has {given} entries but there are {len(objectives)} objectives "
        f"({', '.join(objectives)}). Pass one weight per objective, in this order."
    )


def to_millionths(weights: Sequence[float]) -> list[int]:
    """Weights in whole millionths.

    By way of float32, so that a number reads the same before and after a tensor has held it.

    Raises:
        WeightsError: If one is negative or not finite.
    """
    if bad := [w for w in weights if not -0.5 / MILLION <= w < math.inf]:
        raise WeightsError(f"Weights must be finite and at least 0; got {float(bad[0])}.")
    return [round(c_float(float(w)).value * MILLION) for w in weights]


def apportion(weights: Millionths, units: int) -> list[int]:
    """Whole shares of `units`, each less than one unit from exact: the largest remainders.

    What remains of the units goes to the largest remainders, among equal ones to the larger
    weights. Equal weights get equal shares: where the units left do not do for all of them, all
    are rounded to the nearer share, the half upward, and the sum is not quite `units`. Nothing
    depends on the order of the weights.
    """
    shares = [weight * units // MILLION for weight in weights]
    left = round(sum(weights) * units / MILLION) - sum(shares)
    claims = defaultdict(list)  # (remainder, weight): who has them
    for k, weight in enumerate(weights):
        claims[weight * units % MILLION, weight].append(k)
    for (remainder, _), equals in sorted(claims.items(), reverse=True):
        if left <= 0 or (len(equals) > left and 2 * remainder < MILLION):
            break
        for k in equals:
            shares[k] += 1
        left -= len(equals)
    return shares
