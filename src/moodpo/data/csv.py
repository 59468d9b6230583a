"""CSV: read so that every text survives, written so that a spreadsheet runs nothing.

No cell becomes a number, a date or a missing value, nothing is stripped.
"""

from __future__ import annotations

import csv
import io
import json
import operator
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import dropwhile
from numbers import Number
from pathlib import Path
from typing import TextIO

from moodpo.data.rows import Rows, check_columns, columns_dataset, read_text, row_place
from moodpo.errors import DataError
from moodpo.files import replacing

__all__ = ["read_csv", "write_csv"]

_NUMBER = re.compile(r"(?a:[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_CONVERSATION = re.compile(r'\s*\[\s*\{\s*"(role|content)"\s*:')
_SEPARATORS = ";\t|"  # what spreadsheets and databases write in place of commas


def read_csv(path: Path, source: str, prompt_column: str) -> Rows:
    """Rows of a CSV with a header.

    Args:
        path: The file.
        source: Its name for messages.
        prompt_column: Of the prompts.

    Raises:
        DataError: If it is no CSV with commas, quotes and rows that fit, or has no such column.
    """
    text = read_text(path, source, _csv_place)
    _check_separator(text, prompt_column, source)
    records, lines = _csv_records(text, source)
    if not records:
        raise DataError(f"{source} holds only blank lines: expected a header and prompts.")
    header = _csv_header(records[0])
    check_columns(header, prompt_column, source)
    _check_csv_widths(records, lines, source)
    columns = dict(zip(header, zip(*records[1:], strict=True), strict=False))
    prompts = columns.pop(prompt_column, ())
    _warn_of_conversations(prompts, source)
    return Rows(
        source=source,
        prompts=prompts,
        others=columns_dataset(columns, source) if prompts else None,
        place=row_place,
    )


def write_csv(
    path: str | os.PathLike[str],
    rows: Iterable[Mapping[str, object]],
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Write a UTF-8 CSV that a spreadsheet can open without running anything, atomically.

    Text that starts with `=`, `+`, `-`, `@`, a tab or a carriage return gets a `'` in front, so
    that it stays text; numbers, and text that is a number, stay as they are. Lists and mappings
    (a conversation) become JSON, None an empty cell. The file appears complete or not at all.

    Args:
        path: Where to; missing folders are made.
        rows: One mapping of column to cell per row.
        columns: The header. None takes the keys of the first row.

    Raises:
        ValueError: If a row has a column that the header lacks.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(target) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        _write_rows(file, rows, columns)
        file.flush()
        os.fsync(file.fileno())


# Reading ----------------------------------------------------------------------------------------


def _csv_records(text: str, source: str) -> tuple[list[list[str]], list[int]]:
    """All records, the header first, and the line of the file where each begins."""
    records: list[list[str]] = []
    lines: list[int] = []
    line = 1
    with _long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            for record in reader:
                if record or records:  # blank lines above the header mean nothing
                    records.append(record)
                    lines.append(line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{source}, {_csv_row(len(records), line)}: broken quotes ({error}). Expected "
                'cells with quotes or line breaks as "…", and a quote inside as "". Close or '
                "double the quote."
            ) from None
    return records, lines


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let a cell be longer than the csv module's 128 KiB; its limit is global, so put it back."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_row(record: int, line: int) -> str:
    return f"row {record} (line {line})" if record else f"the header (line {line})"


def _csv_place(before: str) -> str:
    """The row that comes after `before`, which ends anywhere."""
    with _long_cells():
        reader = csv.reader(io.StringIO(before + ".", newline=""))
        records = sum(1 for _ in dropwhile(operator.not_, reader))
        return _csv_row(records - 1, reader.line_num)


def _csv_header(record: list[str]) -> list[str]:
    """Unnamed columns (an index that pandas wrote) are called by their position."""
    return [name if name.strip() else f"column_{i}" for i, name in enumerate(record, start=1)]


def _check_separator(text: str, prompt_column: str, source: str) -> None:
    """Refuse other separators than commas, before quotes and columns are judged by commas."""
    first = re.sub(r"^[\r\n]*([^\r\n]*).*$", r"\1", text[:1000], flags=re.DOTALL)
    if named := re.fullmatch(r"""(?i)"?sep=(.)"?""", first):
        raise DataError(
            f"{source} begins with the line {first!r}, which names {named[1]!r} as separator: "
            "expected commas and a header. Save it with commas and without that line."
        )
    by_commas = _header_by(",", text)
    if prompt_column in by_commas or len(by_commas) > 1:
        return
    for separator in _SEPARATORS:
        cells = _header_by(separator, text)
        if len(cells) > 1:
            raise DataError(
                f"{source} has the header {first!r}: expected commas between columns, got "
                f"{separator!r}. Save it with commas."
            )


def _header_by(separator: str, text: str) -> list[str]:
    """The cells of the first line that has any; none where its quotes do not fit."""
    with _long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            return next((record for record in reader if record), [])
        except csv.Error:
            return []


def _warn_of_conversations(cells: Sequence[str], source: str) -> None:
    """Cells are texts; one that spells a conversation was likelier meant as one."""
    count = sum(bool(_CONVERSATION.match(cell)) for cell in cells)
    if count:
        warnings.warn(
            f"{source}: {count} of {len(cells)} prompts look like conversations in JSON. Cells of "
            "a CSV are texts, so the policy will read the JSON itself. Save conversations as "
            ".jsonl or .parquet.",
            stacklevel=2,
        )


def _check_csv_widths(records: list[list[str]], lines: list[int], source: str) -> None:
    """Refuse ragged rows; a blank line is a row of empty cells."""
    width = len(records[0])
    for index, record in enumerate(records):
        if not record:
            record.extend([""] * width)
        elif len(record) != width:
            raise DataError(
                f"{source}, {_csv_row(index, lines[index])}: {len(record)} cells, expected "
                f"{width} as in the header. Put text that holds commas in double quotes."
            )


# Writing ----------------------------------------------------------------------------------------


def _write_rows(
    file: TextIO, rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None
) -> None:
    """Quoting every text keeps a lone carriage return inside its cell."""
    writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    header = list(columns) if columns is not None else None
    if header is not None:
        writer.writerow([_cell(name) for name in header])
    for row in rows:
        if header is None:
            header = list(row)
            writer.writerow([_cell(name) for name in header])
        if unknown := [name for name in row if name not in header]:
            raise ValueError(f"A row has the columns {unknown}, the header only {header}.")
        writer.writerow([_cell(row.get(name)) for name in header])


def _cell(value: object) -> object:
    """A cell as the CSV writer takes it, with formulas made harmless."""
    if value is None or isinstance(value, Number):
        return value
    if isinstance(value, list | tuple | dict):
        value = json.dumps(value, ensure_ascii=False)
    text = str(value)
    harmless = not text.startswith(_FORMULA_STARTS) or _NUMBER.fullmatch(text)
    return text if harmless else f"'{text}"
