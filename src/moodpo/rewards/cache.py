"""Cache: scores that were given before, so that no reward is asked about the same text twice.

Only for rewards that promise to be functions of the text, by having a `ScoreIdentity`. Holds
digests and numbers, never texts, models or tensors. Needs no torch. Shapes: N texts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moodpo.errors import RewardSpecError
from moodpo.rewards.base import Columns

if TYPE_CHECKING:
    from moodpo.records import Prompt

__all__ = [
    "ScoreCache",
    "ScoreIdentity",
    "first_unknown",
    "new_serial",
    "row_keys",
    "score_identity",
]

DEFAULT_MAX_ENTRIES = 100_000
"""About 20 MB."""

_SERIALS = itertools.count()


def new_serial() -> int:
    """A number that no other object of this process has, not even one that is gone."""
    return next(_SERIALS)


@dataclass(frozen=True, slots=True)
class ScoreIdentity:
    """What a score depends on besides the row that is scored.

    A reward whose `score_identity` is one of these promises that the score of a row follows from
    its prompt, its completion and the columns named here: whatever else is in the batch, and
    however often it is asked. Rewards without one are asked every time.

    Attributes:
        scorer: The same text only for rewards that score every row alike.
        columns: The data columns that are read; None for all there are.
    """

    scorer: str
    columns: frozenset[str] | None = frozenset()


def score_identity(reward: object) -> ScoreIdentity | None:
    """The reward's `score_identity`, None where it has none and so promises nothing."""
    identity = getattr(reward, "score_identity", None)
    return identity if isinstance(identity, ScoreIdentity) else None


def row_keys(
    identity: ScoreIdentity,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    columns: Columns | None,
) -> list[bytes] | None:
    """One key per row: equal for rows that the reward scores alike.

    Args:
        identity: Of the reward.
        prompts: N raw prompts.
        completions: N texts.
        columns: Further data columns, N values each.

    Returns:
        N digests of 16 bytes, or None if some row holds what JSON cannot write.
    """
    read = {
        name: values
        for name, values in (columns or {}).items()
        if identity.columns is None or name in identity.columns
    }
    try:
        return [
            _digest(
                [
                    identity.scorer,
                    prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt],
                    completion,
                    {name: values[row] for name, values in read.items()},
                ]
            )
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
    except (TypeError, ValueError):
        return None


def _digest(facts: list[Any]) -> bytes:
    text = json.dumps(facts, sort_keys=True)  # ASCII: surrogates of broken text are escaped
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()


def first_unknown(keys: Sequence[bytes], known: Mapping[bytes, float]) -> list[int]:
    """The rows to ask about: the first one of every key that is not known, in order."""
    rows: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        if key not in known:
            rows.setdefault(key, row)
    return list(rows.values())


class ScoreCache:
    """Scores by key; forgets those that were not asked for the longest.

    Args:
        max_entries: How many scores are remembered, about 200 bytes each. With 0 none is, and
            only equal rows of one batch are scored once.

    Attributes:
        hits: Scores of rows that no reward was asked for, since the last `pop_counts`.
        misses: Scores of rows that a reward was asked for.

    Raises:
        RewardSpecError: If `max_entries` is negative.
    """

    def __init__(self, max_entries: int = DEFAULT_MAX_ENTRIES) -> None:
        if max_entries < 0:
            raise RewardSpecError(
                f"A score cache cannot hold {max_entries} scores. Pass 0 (none) or more."
            )
        self.max_entries = max_entries
        self.hits = 0
        self.misses = 0
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def find(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """The known ones among keys, with their scores; they are now the last to be forgotten."""
        known = {key: self._scores[key] for key in keys if key in self._scores}
        for key in known:
            self._scores.move_to_end(key)
        return known

    def keep(self, scores: Mapping[bytes, float]) -> None:
        """Remembers scores, but for NaN: a scorer that gave none is asked again."""
        for key, score in scores.items():
            if not math.isnan(score):
                self._scores[key] = score
                self._scores.move_to_end(key)
        while len(self._scores) > self.max_entries:
            self._scores.popitem(last=False)

    def count(self, *, hits: int, misses: int) -> None:
        """Adds to the counters."""
        self.hits += hits
        self.misses += misses

    def pop_counts(self) -> tuple[int, int]:
        """Hits and misses since the last call, and starts anew."""
        counts = self.hits, self.misses
        self.hits = self.misses = 0
        return counts

    def clear(self) -> None:
        """Forgets every score; the counters go on."""
        self._scores.clear()
