"""Weights from Python: labels are honoured wherever values have them, never their place."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch

from moodpo.conditioning.weights import validate_weights, weight_rows
from moodpo.errors import WeightsError
from moodpo.evaluation.weights import check_weights

NAMES = ("a", "b")
ByName = namedtuple("ByName", ["b", "a"])
RECORD = np.array([(0.75, 0.25), (0.5, 0.5)], dtype=[("b", float), ("a", float)])

ONE = [
    {"b": 0.75, "a": 0.25},
    pd.Series({"b": 0.75, "a": 0.25}),
    pd.DataFrame({"b": [0.75], "a": [0.25]}).iloc[0],
    pd.Series([0.25, 0.75]),  # pandas' own labels are places
    ByName(b=0.75, a=0.25),
    RECORD[0],
    [0.25, 0.75],
    (0.25, 0.75),
    (x for x in (0.25, 0.75)),
    np.array([0.25, 0.75]),
    torch.tensor([0.25, 0.75]),
    torch.tensor([0.25, 0.75], requires_grad=True),
    [np.float32(0.25), torch.tensor(0.75)],
    {"a": np.int64(1), "b": torch.tensor(3)},
    pd.Series({"b": 3}).to_dict() | {"a": 1},
]


@pytest.mark.filterwarnings("ignore:Objective weights sum")
@pytest.mark.parametrize("given", ONE, ids=[type(one).__name__ for one in ONE])
def test_one_vector_in_every_container(given):
    assert weight_rows(given, NAMES, count=2) == [(0.25, 0.75)] * 2


SEVERAL = [
    [[0.25, 0.75], [0.5, 0.5]],
    np.array([[0.25, 0.75], [0.5, 0.5]]),
    torch.tensor([[0.25, 0.75], [0.5, 0.5]]),
    [np.array([0.25, 0.75]), torch.tensor([0.5, 0.5])],
    ({"b": 0.75, "a": 0.25}, [0.5, 0.5]),
    [pd.Series({"b": 0.75, "a": 0.25}), ByName(b=0.5, a=0.5)],
    pd.DataFrame({"b": [0.75, 0.5], "a": [0.25, 0.5]}, index=[9, 4]),
    pd.DataFrame([[0.25, 0.75], [0.5, 0.5]]),
    RECORD,
]


@pytest.mark.parametrize("given", SEVERAL, ids=[type(rows).__name__ for rows in SEVERAL])
def test_one_vector_per_prompt_in_every_container(given):
    expected = [(0.25, 0.75), (0.5, 0.5)]
    assert weight_rows(given, NAMES, count=2) == expected
    np.testing.assert_allclose(check_weights(given, NAMES), expected)
    with pytest.raises(WeightsError, match="has 2 rows but there are 3 prompts"):
        weight_rows(given, NAMES, count=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "weights are None"),
        (0.5, r"weights are 0.5 \(float\)"),
        (np.array(0.5), "ndarray"),
        ("a=1", r"weights are 'a=1' \(str\).*Pass \{'a': 0.5, 'b': 0.5\}"),
        ({0.25, 0.75}, r"\(set\)"),
        ({"a": None}, r"weight of 'a' is None"),
        ({"a": "0.5"}, r"weight of 'a' is '0.5' \(str\)"),
        ({"a": [0.5, 0.5]}, r"weight of 'a' is \[0.5, 0.5\] \(list\)"),
        ({"a": True}, r"weight of 'a' is True"),
        ([0.5, 1j], "weight of 'b' is 1j"),
        ([0.5, [0.5]], r"weight of 'b' is \[0.5\]"),
        ([0.5], "has 1 entries"),
        (pd.Series({"a": 1.0, "c": 1.0}), "Unknown objective 'c'"),
        (pd.Series([0.5, 0.5], index=[1, 0]), r"labeled 1, 0; expected the names a, b"),
        (pd.Series([0.5, 0.5], index=["a", "a"]), "twice: a, a"),
        (pd.DataFrame({"a": [1.0], "c": [0.0]}), "row 1: Unknown objective 'c'"),
        (pd.DataFrame([[0.5, 0.5]], columns=["a", "a"]), "twice: a, a"),
        ([[0.5, 0.5], [0.5]], "has 2 rows but there are 1 prompts"),
        ([[0.5]], "row 1: objective_weights has 1 entries"),
        ([[[0.5, 0.5]]], "row 1"),
        ({"a": 1e308, "b": 1e308}, r"1e\+308, 1e\+308 sum to more than a number can hold"),
        ({"a": 10**400}, "weight of 'a'"),
        ({"a": float("inf")}, "must be finite"),
    ],
)
def test_what_cannot_be_weights_is_refused_in_words(given, said):
    with pytest.raises(WeightsError, match=said):
        weight_rows(given, NAMES, count=1)


def test_a_zero_has_no_sign():
    assert str(validate_weights({"a": -0.0, "b": 1}, NAMES)) == "(0.0, 1.0)"


@pytest.mark.parametrize("given", [None, "a", [["x", "y"]], [{"a": 1}, 7]])
def test_a_sweep_refuses_other_weights_in_words(given):
    with pytest.raises(WeightsError):
        check_weights(given, NAMES)
