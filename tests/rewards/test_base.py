from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moodpo.errors import DataError, RewardError
from moodpo.rewards.base import Reward, as_scores, call_scorer, check_lengths
from moodpo.rewards.function import FunctionReward


def test_none_becomes_nan_and_numbers_stay() -> None:
    scores = as_scores("r", [1, None, 2.5, True, math.nan], count=5)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(
        scores, torch.tensor([1.0, math.nan, 2.5, 1.0, math.nan]), equal_nan=True
    )


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True),
        np.array([1.0, 2.0]),
        (1, 2),
        [np.float32(1), torch.tensor(2.0)],
    ],
)
def test_tensors_arrays_and_sequences_are_answers(values: object) -> None:
    scores = as_scores("r", values, count=2)
    assert scores.tolist() == [1.0, 2.0]
    assert not scores.requires_grad


def test_a_wrong_count_names_the_reward_and_both_counts() -> None:
    with pytest.raises(RewardError, match="'r' answered 3 scores for 2 completions"):
        as_scores("r", [1, 2, 3], count=2)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_an_infinity_names_the_reward_and_the_row(value: float) -> None:
    with pytest.raises(RewardError, match=r"'r' answered -?inf for row 1"):
        as_scores("r", [0.0, value], count=2)


@pytest.mark.parametrize("values", [None, 3.0, "12", b"12", {"a": 1.0}])
def test_an_answer_that_is_no_list_is_refused(values: object) -> None:
    with pytest.raises(RewardError, match="expected a list of numbers"):
        as_scores("r", values, count=2)


def test_a_value_that_is_no_number_names_its_row() -> None:
    with pytest.raises(RewardError, match="'high' for row 1"):
        as_scores("r", [0.0, "high"], count=2)


@given(st.lists(st.one_of(st.none(), st.floats(width=32, allow_infinity=False)), max_size=20))
def test_every_finite_answer_survives(values: list[float | None]) -> None:
    scores = as_scores("r", values, count=len(values))
    expected = torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float32)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)


def test_a_scorers_exception_is_kept_as_the_cause() -> None:
    def broken() -> None:
        raise KeyError("answer")

    with pytest.raises(RewardError, match="'r' failed while scoring: KeyError: 'answer'") as info:
        call_scorer("r", broken)
    assert isinstance(info.value.__cause__, KeyError)


def test_a_reward_error_passes_unchanged() -> None:
    error = RewardError("Reward 'inner' answered nonsense.")

    def broken() -> None:
        raise error

    with pytest.raises(RewardError) as info:
        call_scorer("outer", broken)
    assert info.value is error


def test_interrupts_are_not_reward_errors() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_scorer("r", interrupted)


def test_unaligned_rows_are_refused_by_name() -> None:
    check_lengths(["a", "b"], ["c", "d"], {"e": [1, 2]})
    with pytest.raises(DataError, match="prompts has 1 rows but there are 2 completions"):
        check_lengths(["a"], ["c", "d"], None)
    with pytest.raises(DataError, match="column 'e' has 3 rows"):
        check_lengths(["a"], ["c"], {"e": [1, 2, 3]})


def test_the_protocol_recognizes_rewards() -> None:
    assert isinstance(FunctionReward(lambda completions: [0.0], name="zero"), Reward)
    assert not isinstance(lambda completions: [0.0], Reward)


@pytest.mark.parametrize(
    "stop", [SystemExit("text"), SystemExit(0), SystemExit(3), GeneratorExit(), ValueError("no")]
)
def test_a_scorer_that_ends_the_program_is_an_error_that_names_it(stop):
    def score():
        raise stop

    with pytest.raises(RewardError, match=f"'mine' failed while scoring: {type(stop).__name__}"):
        call_scorer("mine", score)


def test_an_interrupt_stays_one():
    def score():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_scorer("mine", score)
