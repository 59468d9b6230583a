"""Weights to sweep: laid out by default, or read from a file.

Knows nothing of policies. Shapes: W weight vectors, K objectives. Files are matched to objectives
by **name**: a column that is called `harmless` is harmless wherever it stands.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moodpo.conditioning.weights import validate_weights, weight_rows
from moodpo.containers import rows_of, values_by_name
from moodpo.errors import WeightsError
from moodpo.evaluation.results import FloatArray

__all__ = ["check_weights", "default_weights", "load_weights_file"]

DEFAULT_LEVELS = {2: 11, 3: 5, 4: 5}
"""Levels per objective of the lattice: 11, 15 and 35 weight vectors."""

NUM_INNER = 32  # low-discrepancy vectors where a lattice would be too large


def default_weights(num_objectives: int, levels: int | None = None) -> FloatArray:
    """Weight vectors that cover the simplex.

    The lattice of Das and Dennis (1998) for up to four objectives (11 vectors for two, as MI-EPO
    and Rewards-in-Context use; 15 for three; 35 for four). For more, the corners, the center and
    32 low-discrepancy vectors: normalized exponentials of a scrambled Sobol sequence, a uniform
    covering of the simplex.

    Args:
        num_objectives: K, at least 1.
        levels: Levels per objective of a lattice, for any K; at least 2.

    Returns:
        `[W, K]`, each row on the simplex; the same on every call.

    Raises:
        WeightsError: If an argument is too small.
    """
    if num_objectives < 1 or (levels is not None and levels < 2):
        raise WeightsError(
            "A sweep needs at least 1 objective and 2 weights per objective; got "
            f"{num_objectives} and {levels}."
        )
    if num_objectives == 1:
        return np.ones((1, 1))
    levels = levels or DEFAULT_LEVELS.get(num_objectives)
    return _covering(num_objectives) if levels is None else _lattice(num_objectives, levels - 1)


def load_weights_file(path: str | os.PathLike[str], objectives: Sequence[str]) -> FloatArray:
    """Reads weight vectors from a CSV or JSON file.

    CSV: K columns in the policy's order, under a header of their names or none. JSON: a list of
    `{name: weight}`, a list of lists of K numbers, or `{"objectives": names, "weights": lists}`.
    Rows are normalized to sum to 1. Columns in another order are refused: a file that was made for
    another policy is the likelier cause than a wish.

    Args:
        path: Ends in `.json` for JSON; anything else is read as CSV.
        objectives: K names in the policy's order.

    Returns:
        `[W, K]` in the policy's order.

    Raises:
        WeightsError: If the file cannot be read, names other objectives or another order of them,
            or a row is not K non-negative numbers with a positive sum.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"Cannot read weights from {path}: {error}. Expected a UTF-8 CSV or JSON file."
        ) from error
    read = _read_json if str(path).lower().endswith(".json") else _read_csv
    try:
        rows = read(text, tuple(objectives))
        if not rows:
            raise WeightsError("no weights in it")
        return np.array([_row(place, values, objectives) for place, values in rows])
    except WeightsError as error:
        example = ",".join(objectives)
        raise WeightsError(
            f"Cannot use the weights in {path}: {error} Expected the header {example!r} and one "
            "row of numbers per weight vector."
        ) from error


def check_weights(weights: ArrayLike, objectives: Sequence[str]) -> FloatArray:
    """Weight vectors as a float64 array on the simplex.

    Args:
        weights: `[W, K]`, an array, tensor, nested sequence, or a table or list of mappings that
            is read by name; rows are normalized.
        objectives: K names.

    Returns:
        `[W, K]`.

    Raises:
        WeightsError: If the shape is wrong or a row is not K non-negative numbers with a positive
            sum.
    """
    rows = rows_of(weights)
    if rows and any(values_by_name(row, objectives) is not None for row in rows):
        return np.array(weight_rows(rows, objectives, count=len(rows)))
    try:
        values = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        raise WeightsError(
            f"weights must be [W, {len(objectives)}] numbers with one column per objective "
            f"({', '.join(objectives)}); got a {type(weights).__name__} of something else."
        ) from None
    if values.ndim != 2 or not len(values) or values.shape[1] != len(objectives):
        raise WeightsError(
            f"weights must be [W, {len(objectives)}] with one column per objective "
            f"({', '.join(objectives)}); got {list(values.shape)}."
        )
    return np.array([_row(f"row {i + 1}", row, objectives) for i, row in enumerate(values)])


def _lattice(num_objectives: int, divisions: int) -> FloatArray:
    from moodpo.core.simplex import simplex_lattice

    lattice = simplex_lattice(num_objectives, divisions).numpy().astype(np.float64)
    # float32 tenths are not tenths: 0.1 must be written 0.1 in the results.
    steps: FloatArray = np.round(lattice * divisions)
    return steps / divisions


def _covering(num_objectives: int) -> FloatArray:
    import torch

    engine: Any = torch.quasirandom.SobolEngine  # untyped upstream
    sobol = engine(num_objectives, scramble=True, seed=0)
    uniform = sobol.draw(NUM_INNER, dtype=torch.float64).clamp(1e-6, 1 - 1e-6).numpy()
    exponentials = -np.log(uniform)
    inner = exponentials / exponentials.sum(axis=1, keepdims=True)
    center = np.full((1, num_objectives), 1.0 / num_objectives)
    return np.concatenate([np.eye(num_objectives), center, inner])


def _row(place: str, values: Sequence[Any] | FloatArray, objectives: Sequence[str]) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise WeightsError(f"{place} is not numbers: {list(values)}.") from None
    try:
        return list(validate_weights(numbers, objectives))
    except WeightsError as error:
        raise WeightsError(f"{place}: {error}") from error


def _read_csv(text: str, objectives: tuple[str, ...]) -> list[tuple[str, Sequence[Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise WeightsError(f"line {reader.line_num} is not CSV ({error}).") from error
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines:
        return []
    if not _is_numeric(lines[0][1]) or set(lines[0][1]) == set(objectives):
        _check_order(lines[0][1], objectives)
        lines = lines[1:]
    return [(place, _counted(row, objectives, place)) for place, row in _placed(lines)]


def _read_json(text: str, objectives: tuple[str, ...]) -> list[tuple[str, Sequence[Any]]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"it is not JSON ({error}).") from error
    names: Any = objectives
    if isinstance(content, dict):
        names, content = content.get("objectives", objectives), content.get("weights")
    if not isinstance(content, list) or not isinstance(names, list | tuple):
        raise WeightsError('it must be a list, or {"objectives": [...], "weights": [...]}.')
    _check_order([str(name) for name in names], objectives)
    return [
        (f"row {i + 1}", _json_row(row, objectives, f"row {i + 1}"))
        for i, row in enumerate(content)
    ]


def _json_row(row: Any, objectives: tuple[str, ...], place: str) -> list[Any]:
    if isinstance(row, dict):  # each weight has its name beside it: no order to mistake
        _check_names(list(row), objectives)
        return [row[name] for name in objectives]
    if not isinstance(row, list):
        raise WeightsError(f"{place} is {row!r}, not a list or an object.")
    return _counted(row, objectives, place)


def _check_names(names: Sequence[str], objectives: tuple[str, ...]) -> None:
    if sorted(names) != sorted(objectives):
        raise WeightsError(f"it names {list(names)}, but the objectives are {list(objectives)}.")


def _check_order(names: Sequence[str], objectives: tuple[str, ...]) -> None:
    _check_names(names, objectives)
    if tuple(names) != objectives:
        raise WeightsError(
            f"its columns are {list(names)}, but the policy's order is {list(objectives)}."
        )


def _placed(lines: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[str, list[str]]]:
    return ((f"line {number}", row) for number, row in lines)


def _counted(row: Sequence[Any], objectives: Sequence[str], place: str) -> list[Any]:
    if len(row) != len(objectives):
        raise WeightsError(
            f"{place} has {len(row)} values, but there are {len(objectives)} objectives."
        )
    return list(row)


def _is_numeric(row: Sequence[str]) -> bool:
    try:
        return bool([float(cell) for cell in row])
    except ValueError:
        return False
