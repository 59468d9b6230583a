"""Containers: the numbers that Python callers pass, by name where they have names, else in order.

What labels its values (a mapping, a pandas Series, a table's columns, a named tuple) is read by its
labels, never by place. Knows these libraries by their attributes alone and imports none.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from moodpo.errors import WeightsError

__all__ = ["as_number", "rows_of", "values_by_name", "values_in_order"]


def values_by_name(weights: Any, objectives: Sequence[str]) -> Mapping[str, Any] | None:
    """One vector's values by name; None where its values have no names.

    Args:
        weights: What was passed.
        objectives: K known names, in order.

    Raises:
        WeightsError: If its labels are no names, or name one twice.
    """
    if isinstance(weights, Mapping):
        return weights
    if hasattr(weights, "_fields"):  # a named tuple
        return dict(zip(weights._fields, weights, strict=True))
    if getattr(getattr(weights, "dtype", None), "names", None) and weights.shape == ():
        return {name: weights[name] for name in weights.dtype.names}  # a record of numpy
    if not (hasattr(weights, "index") and hasattr(weights, "to_dict")) or _is_table(weights):
        return None
    labels = list(weights.index)  # of a pandas Series
    if labels == list(range(len(objectives))):
        return None  # nobody named anything
    if not all(isinstance(label, str) for label in labels):
        raise WeightsError(
            f"The weights are labeled {', '.join(map(repr, labels[:6]))}; expected the names "
            f"{', '.join(objectives)}. Label them by objective, or pass .tolist()."
        )
    if len(set(labels)) < len(labels):
        raise WeightsError(f"The weights name an objective twice: {', '.join(labels)}.")
    return dict(zip(labels, weights.tolist(), strict=True))


def rows_of(weights: Any) -> list[Any] | None:
    """The rows of what holds several vectors, by name where its columns have names; else None."""
    if getattr(getattr(weights, "dtype", None), "names", None):  # records of numpy
        return list(weights.reshape(-1)) if weights.ndim else None
    if _is_table(weights):
        return _table_rows(weights)
    if isinstance(weights, Mapping | str | bytes):
        return None
    if hasattr(weights, "ndim"):
        return list(weights.tolist()) if weights.ndim > 1 else None
    if isinstance(weights, Sequence) and weights and all(map(_holds_values, weights)):
        return list(weights)
    return None


def _table_rows(table: Any) -> list[Any]:
    columns = list(table.columns)
    # polars gives rows itself; of pandas, `rows` would be a column of that name.
    rows = table.rows() if hasattr(type(table), "rows") else table.to_numpy().tolist()
    if columns == list(range(len(columns))):  # nobody named anything
        return [list(row) for row in rows]
    if len(set(columns)) < len(columns):
        raise WeightsError(f"The weights name an objective twice: {', '.join(map(str, columns))}.")
    return [dict(zip(map(str, columns), row, strict=True)) for row in rows]


def _is_table(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "shape")


def _holds_values(value: Any) -> bool:
    """Whether an entry is a vector itself, and no number."""
    if hasattr(value, "ndim"):
        return bool(value.ndim or getattr(value.dtype, "names", None))
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str | bytes)


def values_in_order(weights: Any, objectives: Sequence[str]) -> list[Any]:
    """Values by their place.

    Args:
        weights: What was passed.
        objectives: K known names, for the message.

    Raises:
        WeightsError: If it is no list of values: None, a number, a text, a set.
    """
    if isinstance(weights, Iterable) and not isinstance(weights, str | bytes | Set):
        try:
            return list(weights.tolist()) if hasattr(weights, "tolist") else list(weights)
        except TypeError:  # an array without a dimension
            pass
    example = ", ".join(f"{name!r}: {1 / len(objectives):.2g}" for name in objectives)
    raise WeightsError(
        f"The weights are {reprlib.repr(weights)} ({type(weights).__name__}); expected "
        f"{len(objectives)} numbers by name. Pass {{{example}}}."
    )


def as_number(value: Any, name: str) -> float:
    """A weight as a float.

    Args:
        value: A number of any library.
        name: Whose weight it is, for the message.

    Raises:
        WeightsError: If it is no number.
    """
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise WeightsError(
            f"The weight of {name!r} is {reprlib.repr(value)} ({type(value).__name__}); expected "
            "a number."
        ) from None
