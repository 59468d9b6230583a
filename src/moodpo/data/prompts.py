"""Prompts: a CSV, JSON Lines, JSON or Parquet file, or a Hub dataset → one `prompt` column.

Texts survive exactly: no cell becomes a number, a date or a missing value, nothing is stripped.
Whatever is wrong with the input is a `DataError` that names the row, raised before any model
loads. Knows nothing of tokenizers, weights or models: a prompt is as long as `length_of` says.
`datasets` and pyarrow load on the first call, not on import. Shapes: N prompts.
"""

from __future__ import annotations

import csv
import io
import json
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import resources
from itertools import dropwhile, islice
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

from moodpo.data.messages import check_prompts, listed, shortened
from moodpo.errors import ConfigError, DataError
from moodpo.files import replacing
from moodpo.records import Prompt

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "DataReport",
    "LoadedPrompts",
    "embedded_prompts",
    "filter_long_prompts",
    "load_prompts",
    "prompts_of",
    "write_csv",
]

PROMPT = "prompt"

_HUB_ID = re.compile(r"(?a:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?)")
_NUMBER = re.compile(r"(?a:[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
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
_CONVERSATION = re.compile(r'\s*\[\s*\{\s*"(role|content)"\s*:')
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SEPARATORS = ";\t|"  # what spreadsheets and databases write in place of commas


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What became of the rows: `kept = rows_read - empty_dropped - too_long_dropped`."""

    source: str
    rows_read: int  # rows looked at; with `max_samples`, up to the last one taken
    empty_dropped: int  # missing, empty or only whitespace
    duplicates: int  # kept prompts that repeat an earlier kept one
    too_long_dropped: int = 0
    too_long_truncated: int = 0
    kept: int

    def __str__(self) -> str:
        notes = [
            f"{what}: {count}"
            for count, what in (
                (self.empty_dropped, "empty dropped"),
                (self.too_long_dropped, "too long dropped"),
                (self.too_long_truncated, "too long truncated"),
                (self.duplicates, "duplicates kept"),
            )
            if count
        ]
        tail = f" ({', '.join(notes)})" if notes else ""
        source = self.source if self.source.isprintable() else repr(self.source)
        return f"{source}: kept {self.kept} of {self.rows_read} prompts{tail}"


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """Prompts ready for training: a dataset with a `prompt` column, and how it came about."""

    dataset: Dataset  # N rows: "prompt" (all texts, or all conversations) and the other columns
    report: DataReport
    places: tuple[str, ...] = ()  # N names of rows for messages, such as "line 7"
    fitted_to: object = None  # what `filter_long_prompts` was told they fit

    def __len__(self) -> int:
        return self.report.kept

    @property
    def prompts(self) -> list[Prompt]:
        """The N prompts, in order."""
        return list(self.dataset[PROMPT])

    def place(self, index: int) -> str:
        """How a message names a prompt: by its row in the source."""
        return self.places[index] if self.places else f"prompt {index + 1}"


def embedded_prompts(split: Literal["train", "heldout"]) -> Path:
    """The CSV of prompts that ships with moodpo, with the columns `prompt` and `kind`.

    Args:
        split: `"train"`, or `"heldout"` for evaluation; no prompt is in both.

    Raises:
        DataError: If there is no such split.
    """
    path = Path(str(resources.files("moodpo"))) / "assets" / f"prompts_{split}.csv"
    if split not in ("train", "heldout") or not path.is_file():
        raise DataError(f"There are no embedded prompts {split!r}: ask for 'train' or 'heldout'.")
    return path


def load_prompts(
    source: str | os.PathLike[str],
    *,
    prompt_column: str = PROMPT,
    split: str = "train",
    max_samples: int | None = None,
) -> LoadedPrompts:
    """Read prompts from a file or from the Hub, check every row and drop the empty ones.

    Args:
        source: A `.csv`, `.jsonl`, `.ndjson`, `.json` or `.parquet` file, or a Hub dataset id
            `org/name`, optionally `org/name:config`.
        prompt_column: The column with the prompts: texts, or conversations (lists of
            `{"role", "content"}` that end with a user turn; other keys of a turn are dropped).
        split: The split of a Hub dataset, as `datasets` spells it (`train`, `test[:100]`);
            files have none.
        max_samples: Stop after this many prompts, in file order. None takes all.

    Returns:
        The dataset, its prompts under the name `prompt` (another column of that name becomes
        `original_prompt`), and the report.

    Raises:
        DataError: If anything about the input cannot be read or used.
        ConfigError: If `max_samples` is not positive.
    """
    if max_samples is not None and max_samples < 1:
        raise ConfigError(f"max_samples is {max_samples}: expected at least 1, or none for all.")
    rows = _read(os.fspath(source), prompt_column, split)
    return _loaded(rows, prompt_column, max_samples)


def prompts_of(dataset: Dataset, *, source: str) -> LoadedPrompts:
    """A data set that Python holds, checked and cleaned as a file is.

    Args:
        dataset: With a `prompt` column.
        source: What messages call it.

    Returns:
        As `load_prompts`; the very same data set where there is nothing to clean.

    Raises:
        DataError: If it has no such column, or its prompts cannot be used.
    """
    if PROMPT not in dataset.column_names:
        near = _nearest(PROMPT, dataset.column_names, n=1) or dataset.column_names[:1] or ["text"]
        raise DataError(
            f"{source} has no column 'prompt'; it has {listed(dataset.column_names)}. Rename the "
            f"column that holds the prompts, as in dataset.rename_column({near[0]!r}, 'prompt')."
        )
    rows = _dataset_rows(dataset, source, PROMPT)
    loaded = _loaded(rows, PROMPT, None)
    untouched = len(loaded) == len(dataset) and loaded.prompts == rows.prompts
    return replace(loaded, dataset=dataset) if untouched else loaded


def filter_long_prompts(
    loaded: LoadedPrompts,
    length_of: Callable[[Prompt], int],
    *,
    max_prompt_length: int,
    overflow: Literal["drop", "truncate"],
    truncate: Callable[[Prompt, int], Prompt] | None = None,
) -> LoadedPrompts:
    """Drop or shorten the prompts that are too long, and count them.

    Args:
        loaded: What `load_prompts` gave.
        length_of: Tokens of a prompt once conditioned: the weight instruction counts.
        max_prompt_length: Tokens, at most.
        overflow: What happens to a longer prompt.
        truncate: `truncate(prompt, max_prompt_length)` shortens the user's text, never the
            instruction; needed for `overflow="truncate"`, and its answer is measured again.

    Raises:
        DataError: If nothing would be left, or truncation cannot make a prompt fit.
        ConfigError: If the arguments cannot work together.
    """
    _check_overflow(max_prompt_length, overflow, truncate)
    prompts = loaded.prompts
    lengths = _lengths(loaded, prompts, length_of)
    num_long = sum(length > max_prompt_length for length in lengths)
    if num_long == 0:
        return loaded
    if overflow == "drop" or truncate is None:
        return _drop_long(loaded, prompts, lengths, max_prompt_length)
    cut = [
        _truncated(prompt, loaded.place(i), length_of, truncate, max_prompt_length)
        if lengths[i] > max_prompt_length
        else prompt
        for i, prompt in enumerate(prompts)
    ]
    names = [name for name in loaded.dataset.column_names if name != PROMPT]
    others = loaded.dataset.select_columns(names) if names else None
    report = replace(
        loaded.report,
        too_long_truncated=loaded.report.too_long_truncated + num_long,
        duplicates=_count_duplicates(cut),
    )
    return replace(loaded, dataset=_join(cut, others), report=report)


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


# Reading ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What every reader gives: raw prompts, the other columns, and names for rows."""

    source: str
    prompts: Sequence[object]  # N unchecked values of the prompt column
    others: Dataset | None  # N rows of the other columns; None where there are none
    place: Callable[[int], str]  # index of a row -> how a message names it


_Reader: TypeAlias = Callable[[Path, str, str], _Rows]
"""Path, its name for messages, prompt column -> rows."""


def _read(source: str, prompt_column: str, split: str) -> _Rows:
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
            f"{source!r} cannot be a path ({_said(error)}). Pass an existing file."
        ) from error
    if found:
        return _read_file(path, source, prompt_column)
    if path.suffix.lower() not in _READERS and _HUB_ID.fullmatch(source):
        return _read_hub(source, prompt_column, split)
    raise DataError(_missing_file(path, source))


def _read_file(path: Path, source: str, prompt_column: str) -> _Rows:
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
    if near := _nearest(path.name, siblings, n=3):
        return start + f"Did you mean {listed(near)}, in the same folder?"
    return start + "Check the path: nothing in its folder has a similar name."


# CSV --------------------------------------------------------------------------------------------


def _read_csv(path: Path, source: str, prompt_column: str) -> _Rows:
    text = _read_text(path, source, _csv_place)
    _check_separator(text, prompt_column, source)
    records, lines = _csv_records(text, source)
    if not records:
        raise DataError(f"{source} holds only blank lines: expected a header and prompts.")
    header = _csv_header(records[0])
    _check_columns(header, prompt_column, source)
    _check_csv_widths(records, lines, source)
    columns = dict(zip(header, zip(*records[1:], strict=True), strict=False))
    prompts = columns.pop(prompt_column, ())
    _warn_of_conversations(prompts, source)
    return _Rows(
        source=source,
        prompts=prompts,
        others=_dataset(columns, source) if prompts else None,
        place=_row_place,
    )


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


# JSON -------------------------------------------------------------------------------------------


def _read_json(path: Path, source: str, prompt_column: str) -> _Rows:
    """A list of objects, or, as `datasets` and pandas name it too, one object per line."""
    text = _read_text(path, source, _line_place)
    if not text.lstrip().startswith("["):
        return _json_lines(text, source, prompt_column, "a list [{…}, …], or ")
    values = _parse_json(text, source, "a list of objects [{…}, …]")
    return _json_rows(values, source, prompt_column, lambda index: f"item {index + 1}")


def _read_json_lines(path: Path, source: str, prompt_column: str) -> _Rows:
    return _json_lines(_read_text(path, source, _line_place), source, prompt_column)


def _json_lines(text: str, source: str, prompt_column: str, or_else: str = "") -> _Rows:
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
) -> _Rows:
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise DataError(
                f"{source}, {place(index)}: expected an object such as "
                f'{{"{prompt_column}": "…"}}, got {shortened(value)}. Make every entry an object.'
            )
    names = list(dict.fromkeys(name for value in values for name in value))
    if values:
        _check_columns(names, prompt_column, source)
    columns = {name: [value.get(name) for value in values] for name in names}
    prompts = columns.pop(prompt_column, [])
    return _Rows(source=source, prompts=prompts, others=_dataset(columns, source), place=place)


# Parquet and the Hub ----------------------------------------------------------------------------


def _read_parquet(path: Path, source: str, prompt_column: str) -> _Rows:
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
        _check_columns(names, prompt_column, source)
        return _dataset_rows(Dataset(table), source, prompt_column)
    except DataError:
        raise
    except Exception as error:  # whatever a decoder says of damaged bytes: the file is at fault
        raise DataError(
            f"{source} is not a readable Parquet file ({_said(error)}). Expected a whole file "
            "with plain columns; write it again."
        ) from error


def _read_hub(source: str, prompt_column: str, split: str) -> _Rows:
    import datasets

    name, _, config = source.partition(":")
    try:
        dataset = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # loaders raise anything, network libraries' errors included
        raise DataError(
            f"{source!r} is not a file here, and the Hub dataset {name!r} (split {split!r}) could "
            f"not be loaded: {_said(error)}. {_hub_remedy(error)}"
        ) from error
    _check_columns(dataset.column_names, prompt_column, source)
    return _dataset_rows(dataset, source, prompt_column)


def _hub_remedy(error: Exception) -> str:
    """What to do, by what `datasets` said; its exceptions tell these apart by text alone."""
    said = str(error)
    if isinstance(error, ConnectionError):
        return "Check the network, or pass a local file."
    if "plit" in said:
        return "Pass a split that the dataset has."
    if "onfig" in said:
        return "Name the configuration: 'org/name:config'."
    return "Check the id; for a private or gated dataset run `hf auth login`; or pass a local file."


def _dataset_rows(dataset: Dataset, source: str, prompt_column: str) -> _Rows:
    """Rows of a dataset whose columns are checked; Arrow's values, so that nothing is decoded."""
    column = dataset.select_columns([prompt_column]).with_format("arrow")[:][prompt_column]
    names = [name for name in dataset.column_names if name != prompt_column]
    return _Rows(
        source=source,
        prompts=column.to_pylist(),
        others=_without_clash(dataset.select_columns(names), source) if names else None,
        place=_row_place,
    )


def _dataset(columns: Mapping[str, Sequence[object]], source: str) -> Dataset | None:
    """The other columns of a file as a dataset; None where there are none."""
    import pyarrow as pa
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
                f"({_said(error)}). Give the column one type, or remove it."
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


_READERS: dict[str, _Reader] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
_KINDS = "a .csv, .jsonl, .ndjson, .json or .parquet file"


# Text -------------------------------------------------------------------------------------------


def _read_text(path: Path, source: str, place: Callable[[str], str]) -> str:
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


def _row_place(index: int) -> str:
    return f"row {index + 1}"


def _line_place(before: str) -> str:
    return f"line {before.count(chr(10)) + 1}"


# Checks -----------------------------------------------------------------------------------------


def _check_columns(names: Sequence[str], prompt_column: str, source: str) -> None:
    """Refuse a missing prompt column and repeated names."""
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{source} has more than one column {listed(repeated)}: expected different names. "
            "Rename or remove the repeated ones."
        )
    if prompt_column not in names:
        near = _nearest(prompt_column, names, n=1)
        hint = f"did you mean {listed(near)}? Pass" if near else "pass"
        raise DataError(
            f"{source} has no column {prompt_column!r}; it has {listed(names)}: {hint} "
            "--prompt_column with the name of the column that holds the prompts."
        )


def _loaded(rows: _Rows, prompt_column: str, max_samples: int | None) -> LoadedPrompts:
    """What was read, checked and without the rows that hold no text."""
    prompts = check_prompts(rows.prompts, lambda index: f"{rows.source}, {rows.place(index)}")
    kept = list(islice((i for i, prompt in enumerate(prompts) if prompt is not None), max_samples))
    if not kept:
        raise DataError(
            f"{rows.source} has no prompts: column {prompt_column!r} has {len(prompts)} rows and "
            "none holds text. Expected at least one; check the file and --prompt_column."
        )
    rows_read = kept[-1] + 1 if len(kept) == max_samples else len(prompts)
    chosen = [prompt for i in kept if (prompt := prompts[i]) is not None]
    report = DataReport(
        source=rows.source,
        rows_read=rows_read,
        empty_dropped=rows_read - len(kept),
        duplicates=_count_duplicates(chosen),
        kept=len(kept),
    )
    others = rows.others.select(kept) if rows.others is not None else None
    places = tuple(rows.place(i) for i in kept)
    return LoadedPrompts(_join(chosen, others), report, places)


def _check_overflow(max_prompt_length: int, overflow: str, truncate: object) -> None:
    if max_prompt_length < 1:
        raise ConfigError(f"max_prompt_length is {max_prompt_length}: expected at least 1 token.")
    if overflow not in ("drop", "truncate"):
        raise ConfigError(f"overflow is {overflow!r}: expected 'drop' or 'truncate'.")
    if overflow == "truncate" and truncate is None:
        raise ConfigError("overflow is 'truncate' but no truncate function was given: pass one.")


# Long prompts -----------------------------------------------------------------------------------


def _drop_long(
    loaded: LoadedPrompts, prompts: Sequence[Prompt], lengths: Sequence[int], limit: int
) -> LoadedPrompts:
    keep = [i for i, length in enumerate(lengths) if length <= limit]
    if not keep:
        raise DataError(
            f"{loaded.report.source}: all {len(lengths)} prompts are longer than "
            f"max_prompt_length = {limit} tokens; with the weight instruction the shortest has "
            f"{min(lengths)} and the longest {max(lengths)}. Raise --max_prompt_length to at "
            f"least {min(lengths)}, or shorten the prompts."
        )
    report = replace(
        loaded.report,
        kept=len(keep),
        too_long_dropped=loaded.report.too_long_dropped + len(lengths) - len(keep),
        duplicates=_count_duplicates([prompts[i] for i in keep]),
    )
    places = tuple(loaded.place(i) for i in keep)
    return replace(loaded, dataset=loaded.dataset.select(keep), report=report, places=places)


def _lengths(
    loaded: LoadedPrompts, prompts: Sequence[Prompt], length_of: Callable[[Prompt], int]
) -> list[int]:
    """N lengths in tokens; what refuses a prompt is told with its row."""
    lengths = []
    for i, prompt in enumerate(prompts):
        try:
            lengths.append(length_of(prompt))
        except DataError as error:
            raise DataError(f"{loaded.report.source}, {loaded.place(i)}: {error}") from error
    return lengths


def _truncated(
    prompt: Prompt,
    place: str,
    length_of: Callable[[Prompt], int],
    truncate: Callable[[Prompt, int], Prompt],
    limit: int,
) -> Prompt:
    """A prompt cut to fit, checked: what does not fit would lose its instruction later."""
    shorter = truncate(prompt, limit)
    length = length_of(shorter)
    text = shorter if isinstance(shorter, str) else shorter[-1]["content"]
    if length > limit or not text.strip():
        raise DataError(
            f"{place}: the prompt {shortened(prompt)} cannot be cut to max_prompt_length = {limit} "
            f"tokens: {length} are left and {len(text.strip())} characters of text. "
            "Raise --max_prompt_length, or drop long prompts instead."
        )
    return shorter


# Shared -----------------------------------------------------------------------------------------


def _join(prompts: Sequence[Prompt], others: Dataset | None) -> Dataset:
    """One dataset: the prompts first, then the other columns with their own features."""
    import pyarrow as pa
    from datasets import Dataset, DatasetInfo, Features

    table = pa.table({PROMPT: list(prompts)})
    if others is None:
        return Dataset(table)
    features = Features({**Dataset(table).features, **others.features})
    for name, column in zip(
        others.column_names, others.with_format("arrow")[:].columns, strict=True
    ):
        table = table.append_column(name, column)
    return Dataset(table, info=DatasetInfo(features=features))


_Key: TypeAlias = str | tuple[tuple[str, str], ...]


def _count_duplicates(prompts: Iterable[Prompt]) -> int:
    keys: list[_Key] = [
        prompt
        if isinstance(prompt, str)
        else tuple((turn["role"], turn["content"]) for turn in prompt)
        for prompt in prompts
    ]
    return len(keys) - len(set(keys))


def _nearest(name: str, candidates: Sequence[str], *, n: int) -> list[str]:
    """The candidates most like `name`, case aside, as they are spelled."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    return [by_folded[folded] for folded in get_close_matches(name.casefold(), by_folded, n)]


def _said(error: Exception, *, at_most: int = 300) -> str:
    """A library's message on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    return text if len(text) <= at_most else f"{text[: at_most - 1]}…"
