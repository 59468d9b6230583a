"""Prompts: what was read → checked texts and conversations in one `prompt` column, with a report.

Knows nothing of file formats (`readers`), of tokenizers, weights or models. `datasets` and pyarrow
load on the first call, not on import. Shapes: N prompts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from moodpo.data.messages import check_prompts, listed
from moodpo.data.readers import read_rows
from moodpo.data.rows import PROMPT, Rows, dataset_rows, nearest
from moodpo.errors import ConfigError, DataError
from moodpo.records import Prompt

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "DataReport",
    "LoadedPrompts",
    "count_duplicates",
    "embedded_prompts",
    "join_columns",
    "load_prompts",
    "prompts_of",
]


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
    rows = read_rows(os.fspath(source), prompt_column, split)
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
        near = nearest(PROMPT, dataset.column_names, n=1) or dataset.column_names[:1] or ["text"]
        raise DataError(
            f"{source} has no column 'prompt'; it has {listed(dataset.column_names)}. Rename the "
            f"column that holds the prompts, as in dataset.rename_column({near[0]!r}, 'prompt')."
        )
    rows = dataset_rows(dataset, source, PROMPT)
    loaded = _loaded(rows, PROMPT, None)
    untouched = len(loaded) == len(dataset) and loaded.prompts == rows.prompts
    return replace(loaded, dataset=dataset) if untouched else loaded


def _loaded(rows: Rows, prompt_column: str, max_samples: int | None) -> LoadedPrompts:
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
        duplicates=count_duplicates(chosen),
        kept=len(kept),
    )
    others = rows.others.select(kept) if rows.others is not None else None
    places = tuple(rows.place(i) for i in kept)
    return LoadedPrompts(join_columns(chosen, others), report, places)


def join_columns(prompts: Sequence[Prompt], others: Dataset | None) -> Dataset:
    """One dataset: the prompts first, then the other columns with their own features."""
    import pyarrow as pa  # type: ignore[import-untyped]
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


def count_duplicates(prompts: Iterable[Prompt]) -> int:
    """How many prompts repeat an earlier one."""
    keys: list[_Key] = [
        prompt
        if isinstance(prompt, str)
        else tuple((turn["role"], turn["content"]) for turn in prompt)
        for prompt in prompts
    ]
    return len(keys) - len(set(keys))
