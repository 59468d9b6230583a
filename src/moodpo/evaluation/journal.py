"""Journal of a sweep: finished answers, appended as they come; an interruption costs one chunk.

Knows nothing of policies or rewards. A JSON Lines file: a header with the sweep's fingerprint,
then one line per answer. Lines are only ever appended; a line that a crash cut short is dropped
when the file is read again, and its answer is sampled anew. The file can be deleted once the
results are saved.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moodpo.files import replacing, without_non_finite
from moodpo.records import TokenIds

__all__ = ["ScoredAnswer", "SweepJournal", "fingerprint"]

SCHEMA, VERSION = "moodpo.sweep-journal", 2  # 1 had no tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswer:
    """One answer with its scores."""

    phase: str  # whose answer: "policy" or "baseline"
    row: int  # place in the flattened sweep
    completion: str
    length: int  # completion tokens, see `sweep`
    rewards: Sequence[float]  # K, NaN where there is no score
    held_out: Sequence[float] = ()  # H
    kl: float | None = None  # nats
    token_ids: TokenIds | None = None  # that were sampled, where known
    finished: bool | None = None  # ended by itself, where known


class SweepJournal:
    """The answers of one sweep: in memory, and in a file where a path is given.

    Opening reads what an interrupted run of the **same** sweep left behind. A file of another
    sweep is replaced, with a warning.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, fingerprint: str) -> None:
        self.answers: dict[tuple[str, int], ScoredAnswer] = {}
        self._path = None if path is None else Path(path)
        if self._path is not None:
            header = {"schema": SCHEMA, "version": VERSION, "fingerprint": fingerprint}
            lines = self._restore(self._path, json.dumps(header))
            _rewrite(self._path, [json.dumps(header), *lines])

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self.answers

    def append(self, answers: Sequence[ScoredAnswer]) -> None:
        """Remembers answers, on disk before it returns."""
        self.answers |= {(answer.phase, answer.row): answer for answer in answers}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(_line(answer) + "\n" for answer in answers)
                file.flush()
                os.fsync(file.fileno())

    def _restore(self, path: Path, header: str) -> list[str]:
        """Reads the answers of an earlier run and returns their lines."""
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
        # What follows the last line break was cut short, or would be continued by the next line.
        first, *rest = text.split("\n")[:-1] or [""]
        if first != header:
            warnings.warn(
                f"{path} belongs to another sweep (policy, prompts, weights, sampling or rewards "
                "differ) or to another version of moodpo; starting anew.",
                stacklevel=4,
            )
            return []
        parsed = [(line, _parse(line)) for line in rest]
        self.answers = {(a.phase, a.row): a for _, a in parsed if a is not None}
        return [line for line, answer in parsed if answer is not None]


def fingerprint(**parts: Any) -> str:
    """One text that changes when anything of the sweep changes.

    Args:
        **parts: JSON-able descriptions; other values count by their text.

    Returns:
        A sha256 in hexadecimal.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _line(answer: ScoredAnswer) -> str:
    return json.dumps(without_non_finite(asdict(answer)), allow_nan=False)  # ASCII: one line


def _parse(line: str) -> ScoredAnswer | None:
    """The answer in a line; None where the line is damaged."""
    try:
        values = json.loads(line)
        values |= {key: tuple(_nans(values[key])) for key in ("rewards", "held_out")}
        if (ids := values["token_ids"]) is not None:
            values["token_ids"] = tuple(ids)
        return ScoredAnswer(**values)
    except (ValueError, TypeError, KeyError):
        return None


def _nans(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _rewrite(path: Path, lines: Sequence[str]) -> None:
    """Replaces the file in one step, so that a crash here loses no answer either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
