"""Rows: what every reader gives, and what readers share.

Knows no file format. `datasets` and pyarrow load on the first call, not on import. Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from moodpo.data.messages import listed, shortened
from moodpo.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "PROMPT",
    "Rows",
    "check_columns",
    "columns_dataset",
    "dataset_rows",
    "nearest",
    "read_text",
    "row_place",
    "said",
]

PROMPT = "prompt"

_WIDE_BOMS = {  # the longer ones first: UTF-32's little-endian mark begins with UTF-16's
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_BINARY_STARTS = {
    b"PAR1": "a Parquet file: name it .parquet",
    b"PK\x03\x04": "a zip archive or an Excel workbook: export it as CSV",
    b"\x1f\x8b": "a gzip archive: decompress it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What every reader gives: raw prompts, the other columns, and names for rows."""

    source: str
    prompts: Sequence[object]  # N unchecked values of the prompt column
    others: Dataset | None  # N rows of the other columns; None where there are none
    place: Callable[[int], str]  # index of a row -> how a message names it


def dataset_rows(dataset: Dataset, source: str, prompt_column: str) -> Rows:
    """Rows of a dataset whose columns are checked; Arrow's values, so that nothing is decoded."""
    column = dataset.select_columns([prompt_column]).with_format("arrow")[:][prompt_column]
    names = [name for name in dataset.column_names if name != prompt_column]
    return Rows(
        source=source,
        prompts=column.to_pylist(),
        others=_without_clash(dataset.select_columns(names), source) if names else None,
        place=row_place,
    )


def columns_dataset(columns: Mapping[str, Sequence[object]], source: str) -> Dataset | None:
    """The other columns of a file as a dataset; None where there are none."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from datasets import Dataset

    if not columns:
        return None
    datasets_by_name = {}
    for name, values in columns.items():
        try:
            datasets_by_name[name] = Dataset(pa.table({name: pa.array(values)}))
        except Exception as error:  # Arrow's many refusals of mixed or unknown types
            raise DataError(
                f"{source}, column {shortened(name)}: its values do not fit one type "
                f"({said(error)}). Give the column one type, or remove it."
            ) from error
    arrays = {name: one.data.column(0) for name, one in datasets_by_name.items()}
    return _without_clash(Dataset(pa.table(arrays)), source)


def _without_clash(others: Dataset, source: str) -> Dataset:
    """Make room for our `prompt` column."""
    if PROMPT not in others.column_names:
        return others
    if f"original_{PROMPT}" in others.column_names:
        raise DataError(
            f"{source} has the columns 'prompt' and 'original_prompt' beside the prompts: "
            "'prompt' would be renamed to 'original_prompt'. Rename one of them."
        )
    return others.rename_column(PROMPT, f"original_{PROMPT}")


def check_columns(names: Sequence[str], prompt_column: str, source: str) -> None:
    """Refuse a missing prompt column and repeated names."""
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{source} has more than one column {listed(repeated)}: expected different names. "
            "Rename or remove the repeated ones."
        )
    if prompt_column not in names:
        near = nearest(prompt_column, names, n=1)
        hint = f"did you mean {listed(near)}? Pass" if near else "pass"
        raise DataError(
            f"{source} has no column {prompt_column!r}; it has {listed(names)}: {hint} "
            "--prompt_column with the name of the column that holds the prompts."
        )


def read_text(path: Path, source: str, place: Callable[[str], str]) -> str:
    """The text of a UTF-8 file, its byte order mark removed.

    Args:
        path: The file.
        source: Its name for messages.
        place: Text before a place -> the name of that place.
    """
    data = path.read_bytes()
    _check_text_file(data, source)
    try:
        text = data.decode("utf-8-sig").lstrip("\ufeff")  # exports stack them
    except UnicodeDecodeError as error:
        # Positions count from after a byte order mark, as does `object`.
        before = error.object[: error.start].decode("utf-8")
        offset = error.start + len(data) - len(error.object)
        raise DataError(
            f"{source}, {place(before)}: byte {offset} (0x{data[offset]:02x}) is not UTF-8; the "
            "file may be Latin-1 or Windows-1252. Re-encode it as UTF-8, for example "
            "`iconv -f WINDOWS-1252 -t UTF-8`."
        ) from None
    if "\0" in text:
        at = text.index("\0")
        raise DataError(
            f"{source}, {place(text[:at])}: a NUL character, which text does not hold. The file "
            "may be damaged, binary or UTF-16; export it as UTF-8 text without NULs."
        )
    return text


def _check_text_file(data: bytes, source: str) -> None:
    for mark, encoding in _WIDE_BOMS.items():
        if data.startswith(mark):
            raise DataError(
                f"{source} is encoded as {encoding} (by its byte order mark): expected UTF-8. "
                f"Re-encode it, for example `iconv -f {encoding} -t UTF-8`."
            )
    for start, what in _BINARY_STARTS.items():
        if data.startswith(start):
            raise DataError(f"{source} is not text: expected UTF-8, got {what}.")


def row_place(index: int) -> str:
    """How a message names a row, counted from 1."""
    return f"row {index + 1}"


def nearest(name: str, candidates: Sequence[str], *, n: int) -> list[str]:
    """The candidates most like `name`, case aside, as they are spelled."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    return [by_folded[folded] for folded in get_close_matches(name.casefold(), by_folded, n)]


def said(error: Exception, *, at_most: int = 300) -> str:
    """A library's message on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    return text if len(text) <= at_most else f"{text[: at_most - 1]}…"
