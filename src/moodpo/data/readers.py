"""Readers: a CSV, JSON Lines, JSON or Parquet file, or a Hub dataset → rows.

Texts survive exactly. Whatever is wrong with the input is a `DataError` that names the row, raised
before any model loads. `datasets` and pyarrow load on the first call, not on import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from moodpo.data.csv import read_csv
from moodpo.data.messages import listed, shortened
from moodpo.data.rows import (
    Rows,
    check_columns,
    columns_dataset,
    dataset_rows,
    nearest,
    read_text,
    said,
)
from moodpo.errors import DataError

__all__ = ["read_rows"]

_HUB_ID = re.compile(r"(?a:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?)")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_Reader: TypeAlias = Callable[[Path, str, str], Rows]
"""Path, its name for messages, prompt column -> rows."""


def read_rows(source: str, prompt_column: str, split: str) -> Rows:
    """Decide what `source` is: a file here, or a dataset on the Hub."""
    if "://" in source:
        raise DataError(
            f"{source!r} is a URL: expected a local file or a Hub dataset id 'org/name'. "
            "Download the file and pass its path."
        )
    path = Path(source)
    try:
        path = path.expanduser()
        found = bool(source) and path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{source!r} cannot be a path ({said(error)}). Pass an existing file."
        ) from error
    if found:
        return _read_file(path, source, prompt_column)
    if path.suffix.lower() not in _READERS and _HUB_ID.fullmatch(source):
        return _read_hub(source, prompt_column, split)
    raise DataError(_missing_file(path, source))


def _read_file(path: Path, source: str, prompt_column: str) -> Rows:
    try:
        return _reader_of(path, source)(path, source, prompt_column)
    except OSError as error:
        raise DataError(
            f"{source!r} cannot be read: {error}. Expected a readable file that is whole; "
            "check its permissions or export it again."
        ) from error


def _reader_of(path: Path, source: str) -> _Reader:
    """The reader for a path that exists, once it is sure to be a file with something in it."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _READERS)
        hint = f"pass one of its files: {listed(inside)}" if inside else "it has none inside"
        raise DataError(f"{source!r} is a folder: expected a file ({_KINDS}); {hint}.")
    if not path.is_file():
        raise DataError(f"{source!r} is a device or a pipe: expected a regular file ({_KINDS}).")
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"{source!r} ends with {path.suffix!r}: expected {_KINDS}. "
            "Rename it to what it holds, or convert it."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{source!r} is empty (0 bytes): expected prompts. Check the export.")
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError(
                f"{source!r} is a Git LFS pointer: it says where the data are and holds none. Run "
                "`git lfs pull` in its repository, or download the file itself."
            )
    return _READERS[path.suffix.lower()]


def _missing_file(path: Path, source: str) -> str:
    start = f"There is no file {source!r}: expected {_KINDS}, or a Hub dataset id 'org/name'. "
    try:
        siblings = sorted(p.name for p in path.parent.iterdir())
    except OSError:
        return start + f"The folder {str(path.parent)!r} cannot be listed either; check the path."
    if near := nearest(path.name, siblings, n=3):
        return start + f"Did you mean {listed(near)}, in the same folder?"
    return start + "Check the path: nothing in its folder has a similar name."


# JSON -------------------------------------------------------------------------------------------


def _read_json(path: Path, source: str, prompt_column: str) -> Rows:
    """A list of objects, or, as `datasets` and pandas name it too, one object per line."""
    text = read_text(path, source, _line_place)
    if not text.lstrip().startswith("["):
        return _json_lines(text, source, prompt_column, "a list [{…}, …], or ")
    values = _parse_json(text, source, "a list of objects [{…}, …]")
    return _json_rows(values, source, prompt_column, lambda index: f"item {index + 1}")


def _read_json_lines(path: Path, source: str, prompt_column: str) -> Rows:
    return _json_lines(read_text(path, source, _line_place), source, prompt_column)


def _json_lines(text: str, source: str, prompt_column: str, or_else: str = "") -> Rows:
    # Only "\n" ends a line: str.splitlines would also cut at U+2028 inside a string.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    values = [
        _parse_json(line, f"{source}, line {n}", f"{or_else}one whole object {{…}} per line")
        for n, line in lines
    ]
    return _json_rows(values, source, prompt_column, lambda index: f"line {lines[index][0]}")


def _parse_json(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not valid JSON ({error}). Expected {expected}; got {shortened(text)}. "
            "Correct or remove it."
        ) from None


def _json_rows(
    values: list[Any], source: str, prompt_column: str, place: Callable[[int], str]
) -> Rows:
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(
                f"{source}, {place(index)}: expected an object such as "
                f'{{"{prompt_column}": "…"}}, got {shortened(value)}. Make every entry an object.'
            )
    names = list(dict.fromkeys(name for value in values for name in value))
    if values:
        check_columns(names, prompt_column, source)
    columns = {name: [value.get(name) for value in values] for name in names}
    prompts = columns.pop(prompt_column, [])
    return Rows(
        source=source, prompts=prompts, others=columns_dataset(columns, source), place=place
    )


def _line_place(before: str) -> str:
    return f"line {before.count(chr(10)) + 1}"


# Parquet and the Hub ----------------------------------------------------------------------------


def _read_parquet(path: Path, source: str, prompt_column: str) -> Rows:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from datasets import Dataset

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        names = table.column_names
        for index, column in enumerate(table.columns):
            if pa.types.is_dictionary(column.type):  # pandas categories: not known to `datasets`
                plain = column.cast(column.type.value_type)
                table = table.set_column(index, names[index], plain)
        check_columns(names, prompt_column, source)
        return dataset_rows(Dataset(table), source, prompt_column)
    except DataError:
        raise
    except Exception as error:  # whatever a decoder says of damaged bytes: the file is at fault
        raise DataError(
            f"{source} is not a readable Parquet file ({said(error)}). Expected a whole file "
            "with plain columns; write it again."
        ) from error


def _read_hub(source: str, prompt_column: str, split: str) -> Rows:
    import datasets

    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # loaders raise anything, network libraries' errors included
        raise DataError(
            f"{source!r} is not a file here, and the Hub dataset {name!r} (split {split!r}) could "
            f"not be loaded: {said(error)}. {_hub_remedy(error)}"
        ) from error
    check_columns(dataset.column_names, prompt_column, source)
    return dataset_rows(dataset, source, prompt_column)


def _hub_remedy(error: Exception) -> str:
    """What to do, by what `datasets` said; its exceptions tell these apart by text alone."""
    text = str(error)
    if isinstance(error, ConnectionError):
        return "Check the network, or pass a local file."
    if "plit" in text:
        return "Pass a split that the dataset has."
    if "onfig" in text:
        return "Name the configuration: 'org/name:config'."
    return "Check the id; for a private or gated dataset run `hf auth login`; or pass a local file."


_READERS: dict[str, _Reader] = {
    ".csv": read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
_KINDS = "a .csv, .jsonl, .ndjson, .json or .parquet file"
