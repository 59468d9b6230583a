"""Panel: K rewards asked about the same texts → one matrix. Knows no particular scorer.

Shapes: N texts, K objectives in the order of the rewards, which is the order of every weight
vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from moodpo.errors import RewardSpecError
from moodpo.rewards.base import Columns, Description, Reward, as_scores, call_scorer, check_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from moodpo.records import Prompt

__all__ = ["RewardPanel"]


class RewardPanel:
    """Asks every reward and refuses every answer that is not N finite numbers or NaN.

    Args:
        rewards: K rewards with distinct names.

    Raises:
        RewardSpecError: Without rewards, or when two have the same name.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        if not rewards:
            raise RewardSpecError("A panel needs at least one reward. Pass load_rewards([...]).")
        self.rewards = tuple(rewards)
        self.names = tuple(reward.name for reward in self.rewards)
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
        scores = [self._ask(reward, prompts, completions, columns) for reward in self.rewards]
        return torch.stack(scores, dim=-1)

    def describe(self) -> list[Description]:
        """One description per reward, in order; `specs.rebuild_specs` reads them back."""
        return [reward.describe() for reward in self.rewards]

    def _ask(
        self,
        reward: Reward,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Columns | None,
    ) -> Tensor:
        values = call_scorer(reward.name, reward.score, prompts, completions, columns)
        return as_scores(reward.name, values, count=len(completions))
