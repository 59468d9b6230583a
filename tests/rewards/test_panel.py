from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from moodpo.errors import DataError, RewardError, RewardSpecError
from moodpo.rewards import (
    FunctionReward,
    RewardPanel,
    ScoreIdentity,
    load_rewards,
    rebuild_specs,
)
from moodpo.rewards.base import RewardRowError


class Foreign:
    """A reward of somebody else: nothing but the protocol."""

    def __init__(self, answer: Any, name: str = "foreign") -> None:
        self.answer = answer
        self.name = name

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Tensor:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "foreign", "spec": None}


def length(completions: list[str], bonus: list[float]) -> list[float | None]:
    return [len(c) + b if c else None for c, b in zip(completions, bonus, strict=True)]


def test_one_column_per_reward_in_order() -> None:
    panel = RewardPanel(
        [FunctionReward(length, name="length"), *load_rewards(["short=brevity", "detail"])]
    )
    assert panel.names == ("length", "short", "detail")
    assert len(panel) == 3
    scores = panel.score(["p"] * 3, ["abc", "", "de"], {"bonus": [0.5, 0, 0]})
    assert scores.shape == (3, 3)
    assert scores.dtype == torch.float32
    assert scores[0, 0] == 3.5
    assert math.isnan(scores[1, 0])
    assert scores[2, 0] == 2
    assert scores[:, 1].tolist() == pytest.approx([1 / 6, 0.0, 1 / 6])


def test_no_texts_give_no_rows() -> None:
    assert RewardPanel(load_rewards(["brevity", "detail"])).score([], []).shape == (0, 2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (ValueError("no GPU"), "'foreign' failed while scoring: ValueError: no GPU"),
        (torch.zeros(3), "'foreign' answered 3 scores for 2 completions"),
        (torch.tensor([0.0, -math.inf]), "'foreign' answered -inf for row 1"),
        (None, "'foreign' answered a NoneType"),
        (torch.zeros(2, 1, 1).tolist(), r"answered \[\[0.0\]\] for row 0"),
    ],
)
def test_foreign_rewards_are_checked_too(answer: Any, message: str) -> None:
    panel = RewardPanel([Foreign(answer)])
    with pytest.raises(RewardError, match=message):
        panel.score(["p", "q"], ["a", "b"])


def test_unaligned_rows_never_reach_a_scorer() -> None:
    panel = RewardPanel([Foreign(AssertionError("asked"))])
    with pytest.raises(DataError, match="prompts has 1 rows"):
        panel.score(["p"], ["a", "b"])
    with pytest.raises(DataError, match="column 'x'"):
        panel.score(["p"], ["a"], {"x": []})


def test_names_are_distinct_and_there_is_at_least_one() -> None:
    with pytest.raises(RewardSpecError, match="Two rewards are named 'a'"):
        RewardPanel([Foreign(None, "a"), Foreign(None, "b"), Foreign(None, "a")])
    with pytest.raises(RewardSpecError, match="at least one"):
        RewardPanel([])


def test_a_description_rebuilds_the_panel() -> None:
    panel = RewardPanel(load_rewards(["short=brevity", "dump=json:dumps", "detail"]))
    descriptions = json.loads(json.dumps(panel.describe()))
    specs = rebuild_specs(descriptions)
    assert specs == ["short=brevity", "dump=json:dumps", "detail=detail"]
    assert RewardPanel(load_rewards(specs)).describe() == panel.describe()
    with pytest.raises(RewardSpecError, match=r"'foreign' was a Python object"):
        rebuild_specs(RewardPanel([Foreign(None)]).describe())


# --- a failing row costs one request --------------------------------------------------------------

TEXTS = [f"text {row}" for row in range(16)]
FAILS = TEXTS[11]


class Judge:
    """Answers every text but one, and counts the requests for each, as a bill would."""

    def __init__(self, failure: Any, identity: ScoreIdentity | None) -> None:
        self.name, self.failure, self.score_identity = "judge", failure, identity
        self.bill: Counter[str] = Counter()

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Any:
        self.bill.update(completions)
        if FAILS not in completions or self.failure is None:
            return torch.arange(len(completions)).float()
        row = completions.index(FAILS)
        scores = [math.nan if text == FAILS else 1.0 for text in completions]
        if isinstance(self.failure, type):
            raise self.failure("busy")
        if self.failure == "row":
            raise RewardRowError("Judge 'judge' timed out", row, ". Try again.", scores=scores)
        scores[row] = self.failure
        return scores

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "judge", "spec": None}


@pytest.mark.parametrize("identity", [None, ScoreIdentity("judge")])
@pytest.mark.parametrize("failure", [math.inf, "no number", "row", ValueError])
def test_one_failing_row_asks_for_no_other_again(
    failure: Any, identity: ScoreIdentity | None
) -> None:
    judge = Judge(failure, identity)
    panel = RewardPanel([judge])
    with pytest.raises(RewardError, match="judge") as info:
        panel.score(["p"] * 16, TEXTS)
    assert judge.bill == Counter(TEXTS)
    if isinstance(info.value, RewardRowError):
        assert info.value.row == 11
    judge.failure = None
    panel.score(["p"] * 16, TEXTS)
    remembered = identity is not None and failure is not ValueError
    expected = Counter(dict.fromkeys(TEXTS, 1 if remembered else 2) | {FAILS: 2})
    assert judge.bill == expected
