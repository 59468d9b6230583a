"""Base: what a reward is, and how a raw answer of a scorer becomes a tensor that can be trusted.

A reward sees the raw prompt and the completion as text, never token ids and never the weight
instruction. All rewards maximize. Knows no particular scorer and no torch until it scores.
Shapes: N texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from moodpo.errors import DataError, RewardError

if TYPE_CHECKING:
    from torch import Tensor

    from moodpo.records import Prompt

__all__ = [
    "Columns",
    "Description",
    "Reward",
    "RewardRowError",
    "as_scores",
    "call_scorer",
    "check_lengths",
]

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""Further data columns, name -> N values aligned with the texts."""

Description: TypeAlias = dict[str, Any]
"""JSON-able facts about a reward: `name`, `kind`, `spec`, `revision` and what its kind adds."""


@runtime_checkable
class Reward(Protocol):
    """One objective. Anything with this shape can stand in a panel."""

    @property
    def name(self) -> str:
        """The objective's name, unique within a panel."""

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Columns | None = None,
    ) -> Tensor:
        """Scores `[N]` float32 on the CPU: higher is better, NaN where there is no score.

        Args:
            prompts: N raw prompts.
            completions: N texts, aligned with `prompts`.
            columns: Further data columns, N values each.
        """

    def describe(self) -> Description:
        """JSON-able facts, enough to rebuild the reward where that is possible."""


class RewardRowError(RewardError):
    """A scorer's answer about one row cannot be used; the others' can.

    Args:
        said: The message up to the row's number.
        row: Which of the rows that the scorer was asked about.
        remedy: The message after it.
        scores: Of all rows it was asked about; NaN for those that failed.
    """

    def __init__(self, said: str, row: int, remedy: str, *, scores: Sequence[float]) -> None:
        super().__init__(f"{said} for row {row}{remedy}")
        self.said, self.row, self.remedy, self.scores = said, row, remedy, scores

    def renumbered(self, rows: Sequence[int]) -> RewardRowError:
        """The same error about all rows, of which the scorer saw `rows`."""
        return RewardRowError(self.said, rows[self.row], self.remedy, scores=self.scores)


def check_lengths(
    prompts: Sequence[Any], completions: Sequence[Any], columns: Columns | None
) -> None:
    """Refuses texts or columns that are not aligned row by row.

    Raises:
        DataError: Naming the first thing whose length differs from the number of completions.
    """
    lengths = {"prompts": len(prompts)}
    lengths |= {f"column {name!r}": len(values) for name, values in (columns or {}).items()}
    for what, length in lengths.items():
        if length != len(completions):
            raise DataError(
                f"{what} has {length} rows but there are {len(completions)} completions. "
                "Pass one row per completion, in the same order."
            )


def call_scorer(name: str, scorer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a scorer; whatever it raises names the reward and keeps its cause.

    Raises:
        RewardError: From the scorer's own exception, `sys.exit` included. A failure is never
            turned into a score, nor into the end of the program.
    """
    try:
        return scorer(*args, **kwargs)
    except (RewardError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RewardError(
            f"Reward {name!r} failed while scoring: {type(error).__name__}: {error}"
        ) from error


def as_scores(name: str, values: Any, *, count: int) -> Tensor:
    """The answer of a scorer as `[N]` float32 on the CPU; None becomes NaN.

    Args:
        name: The reward's name, for messages.
        values: A `[N]` tensor or array, or N numbers or Nones.
        count: N.

    Raises:
        RewardError: On a wrong count, a value that is not a number, or an infinity.
    """
    import torch

    if isinstance(values, torch.Tensor) and values.dim() == 1:
        scores = values.detach().to("cpu", torch.float32)
    else:
        scores = torch.tensor(_floats(name, values), dtype=torch.float32)
    if len(scores) != count:
        raise RewardError(
            f"Reward {name!r} answered {len(scores)} scores for {count} completions. "
            "Return one number (or None) per completion."
        )
    infinite = scores.isinf()
    for row in torch.nonzero(infinite).flatten().tolist()[:1]:
        raise RewardRowError(
            f"Reward {name!r} answered {scores[row].item()}",
            row,
            ". Return a finite float32 number, or None (NaN) where there is no score.",
            scores=scores.masked_fill(infinite, math.nan).tolist(),
        )
    return scores


def _floats(name: str, values: Any) -> list[float]:
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise RewardError(
            f"Reward {name!r} answered a {type(values).__name__}, expected a list of numbers, "
            "one per completion."
        )
    floats, failed = [], []
    for row, value in enumerate(values):
        try:
            floats.append(math.nan if value is None else float(value))
        except (TypeError, ValueError):
            floats.append(math.nan)
            failed.append((row, value))
    for row, value in failed[:1]:
        raise RewardRowError(
            f"Reward {name!r} answered {value!r}",
            row,
            ", expected a number or None.",
            scores=[score if math.isfinite(score) else math.nan for score in floats],
        )
    return floats
