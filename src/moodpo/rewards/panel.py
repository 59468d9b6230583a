"""Panel: K rewards asked about the same texts → one matrix. Knows no particular scorer.

No work is done twice: scores are remembered (`cache`), and within one question rewards share what
they compute of the same texts (`sharing`).

Shapes: N texts, K objectives in the order of the rewards, which is the order of every weight
vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from moodpo.errors import RewardSpecError
from moodpo.rewards.base import (
    Columns,
    Description,
    Reward,
    RewardRowError,
    as_scores,
    call_scorer,
    check_lengths,
)
from moodpo.rewards.cache import ScoreCache, first_unknown, row_keys, score_identity
from moodpo.rewards.sharing import shared_work

if TYPE_CHECKING:
    from torch import Tensor

    from moodpo.records import Prompt

__all__ = ["RewardPanel"]


class RewardPanel:
    """Asks every reward and refuses every answer that is not N finite numbers or NaN.

    Scores of rewards that have a `score_identity` are remembered: of lexical scorers, of models
    loaded here, and of functions marked `deterministic`. This is safe to leave on. Such a score
    is a function of the row alone: weights are frozen, dropout is off, and text, format, label and
    precision are all in the key, as is the loaded checkpoint itself. A model that was passed as an
    object may be trained further by its owner, so it is asked every time. What rounding makes of a
    model's score depends on the batch around it, so a text scored next to remembered ones may move
    in its last bits, as it does in any other batch. A run that must repeat to the last bit from
    some moment on calls `cache.clear()` at that moment.

    Args:
        rewards: K rewards with distinct names.
        cache: Where scores are remembered; one of its own when omitted. `ScoreCache(0)` remembers
            none. Panels may share one.

    Raises:
        RewardSpecError: Without rewards, or when two have the same name.
    """

    def __init__(self, rewards: Sequence[Reward], *, cache: ScoreCache | None = None) -> None:
        if not rewards:
            raise RewardSpecError("A panel needs at least one reward. Pass load_rewards([...]).")
        self.rewards = tuple(rewards)
        self.cache = ScoreCache() if cache is None else cache
        self.names = tuple(reward.name for reward in self.rewards)
        self._carried_cuts = (0, 0)
        if repeated := [name for name, count in Counter(self.names).items() if count > 1]:
            raise RewardSpecError(
                f"Two rewards are named {repeated[0]!r}. Name one of them differently, as in "
                f"other_{repeated[0]}=<spec>."
            )

    def __len__(self) -> int:
        return len(self.rewards)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Columns | None = None,
    ) -> Tensor:
        """Raw scores `[N, K]` float32 on the CPU, NaN where a scorer gave none.

        Args:
            prompts: N raw prompts, without the weight instruction.
            completions: N texts, aligned with `prompts`.
            columns: Further data columns, N values each.

        Raises:
            DataError: If prompts, completions and columns are not aligned.
            RewardError: If a scorer raised, answered a wrong count, or infinities.
        """
        check_lengths(prompts, completions, columns)
        with shared_work():
            scores = [self._score(reward, prompts, completions, columns) for reward in self.rewards]
        return torch.stack(scores, dim=-1)

    def describe(self) -> list[Description]:
        """One description per reward, in order; `specs.rebuild_specs` reads them back."""
        return [reward.describe() for reward in self.rewards]

    def pop_cuts(self) -> tuple[int, int]:
        """How many inputs of models were cut to fit, out of how many read; starts anew."""
        counts = [reward.pop_cuts() for reward in self.rewards if hasattr(reward, "pop_cuts")]
        counts.append(self._carried_cuts)
        self._carried_cuts = (0, 0)
        return sum(cut for cut, _ in counts), sum(read for _, read in counts)

    def carry_cuts(self, cut: int, read: int) -> None:
        """Gives popped counts back: the next `pop_cuts` counts them too."""
        self._carried_cuts = (self._carried_cuts[0] + cut, self._carried_cuts[1] + read)

    def _score(
        self,
        reward: Reward,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Columns | None,
    ) -> Tensor:
        """One reward's `[N]`: remembered where it can be, asked for otherwise."""
        identity = score_identity(reward)
        keys = row_keys(identity, prompts, completions, columns) if identity else None
        if keys is None:
            return _ask(reward, range(len(completions)), prompts, completions, columns)
        known = self.cache.find(keys)
        rows = first_unknown(keys, known)

        def keep(scores: Sequence[float]) -> dict[bytes, float]:
            new = {keys[row]: score for row, score in zip(rows, scores, strict=True)}
            self.cache.keep(new)
            return new

        try:
            new = keep(_ask(reward, rows, prompts, completions, columns).tolist())
        except RewardRowError as error:
            keep(error.scores)  # whoever asks again asks about the rows that failed
            raise error.renumbered(rows) from error.__cause__
        self.cache.count(hits=len(keys) - len(rows), misses=len(rows))
        known |= new
        return torch.tensor([known[key] for key in keys], dtype=torch.float32)


def _ask(
    reward: Reward,
    rows: Sequence[int],
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    columns: Columns | None,
) -> Tensor:
    """One reward's scores of the given rows, in their order: one request, whatever becomes of it.

    What fails is never asked about again here, because a request may cost money: a
    `RewardRowError` says which row it was, and carries the scores of the others.
    """
    if len(rows) < len(completions):
        if not rows:
            return torch.empty(0)
        prompts = [prompts[row] for row in rows]
        completions = [completions[row] for row in rows]
        columns = {name: [values[row] for row in rows] for name, values in (columns or {}).items()}
    values = call_scorer(reward.name, reward.score, prompts, completions, columns)
    return as_scores(reward.name, values, count=len(completions))
