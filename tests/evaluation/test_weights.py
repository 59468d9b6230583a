from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moodpo.errors import WeightsError
from moodpo.evaluation.weights import check_weights, default_weights, load_weights_file

NAMES = ("helpful", "harmless", "humor")


@pytest.mark.parametrize(("K", "W"), [(1, 1), (2, 11), (3, 15), (4, 35), (5, 38), (8, 41)])
def test_the_defaults_have_the_documented_sizes(K, W):
    weights = default_weights(K)
    assert weights.shape == (W, K)
    assert (weights >= 0).all()
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert len(np.unique(weights.round(9), axis=0)) == W
    rows = weights.tolist()
    assert all(corner in rows for corner in np.eye(K).tolist())


def test_a_lattice_holds_every_multiple():
    weights = default_weights(3, levels=4)
    expected = {
        tuple(i / 3 for i in steps) for steps in product(range(4), repeat=3) if sum(steps) == 3
    }
    assert {tuple(row) for row in weights.tolist()} == expected


def test_tenths_are_tenths():
    assert sorted(default_weights(2)[:, 0].tolist()) == [i / 10 for i in range(11)]


def test_more_objectives_are_covered_without_the_global_generator():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = default_weights(6)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(first, default_weights(6))
    assert [1 / 6] * 6 in first.tolist()
    # A uniform covering has the mean of the simplex; clumps would not.
    assert np.allclose(first[7:].mean(axis=0), 1 / 6, atol=0.04)


@pytest.mark.parametrize(("K", "levels"), [(0, None), (2, 1)])
def test_sweeps_without_weights_are_refused(K, levels):
    with pytest.raises(WeightsError, match="at least 1 objective and 2 weights"):
        default_weights(K, levels)


def test_check_weights_takes_tensors_and_normalizes():
    assert check_weights(torch.tensor([[0.25, 0.75]]), NAMES[:2]).tolist() == [[0.25, 0.75]]
    with pytest.warns(UserWarning, match="sum to 4"):
        assert check_weights([[1, 3]], NAMES[:2]).tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ([[0.5, 0.5]], r"must be \[W, 3\]"),
        ([0.2, 0.3, 0.5], r"got \[3\]"),
        (np.empty((0, 3)), r"got \[0, 3\]"),
        ([[1, 0, 0], [0.5, 0.6, -0.1]], "row 2: The weight of 'humor' is -0.1"),
        ([[float("nan"), 0, 1]], "row 1: The weight of 'helpful' is nan"),
        ([[0, 0, 0]], "row 1: All weights are 0"),
    ],
)
def test_impossible_weights_are_refused(weights, reason):
    with pytest.raises(WeightsError, match=reason):
        check_weights(weights, NAMES)


def read(tmp_path, text, name="weights.csv", objectives=NAMES):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_weights_file(path, objectives).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "helpful,harmless,humor\n0.5,0.3,0.2\n1,0,0\n",
        "\ufeffhelpful , harmless,humor\r\n0.5,0.3,0.2\r\n\r\n1,0,0\r\n",
        '"helpful","harmless","humor"\n0.5,0.3,0.2\n1,0,0',
        "0.5,0.3,0.2\n1,0,0\n",
    ],
)
def test_csv_has_the_policys_columns(tmp_path, text):
    assert read(tmp_path, text) == [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    "content",
    [
        [
            {"humor": 0.2, "helpful": 0.5, "harmless": 0.3},
            {"helpful": 1, "humor": 0, "harmless": 0},
        ],
        [[0.5, 0.3, 0.2], [1, 0, 0]],
        {"objectives": ["helpful", "harmless", "humor"], "weights": [[0.5, 0.3, 0.2], [1, 0, 0]]},
        {"weights": [[0.5, 0.3, 0.2], [1, 0, 0]]},
    ],
)
def test_json_lists_weights_or_names_them(tmp_path, content):
    rows = read(tmp_path, json.dumps(content), "weights.json")
    assert rows == [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]


def test_objectives_with_numbers_for_names_have_a_header(tmp_path):
    assert read(tmp_path, "1,2\n0.75,0.25\n", objectives=("1", "2")) == [[0.75, 0.25]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no weights in it"),
        ("helpful,harmless,humor\n", "no weights in it"),
        ("helpful,harmless\n0.5,0.5\n", "it names"),
        ("helpful,harmless,humour\n1,0,0\n", "humour"),
        ("helpful,helpful,humor\n1,0,0\n", "it names"),
        ("humor,helpful,harmless\n0.2,0.5,0.3\n", "but the policy's order is"),
        ("helpful,harmless,humor,extra\n1,0,0,0\n", "extra"),
        ("0.5,0.5\n", "line 1 has 2 values"),
        ("0.5,0.3,0.2\n0.5,0.5\n", "line 2 has 2 values"),
        ("helpful,harmless,humor\n1,0,x\n", "line 2 is not numbers"),
        ("helpful,harmless,humor\n1,0,\n", "line 2 is not numbers"),
        ("helpful,harmless,humor\n1,0,-1\n", "line 2: The weight of 'humor' is -1"),
        ("helpful,harmless,humor\n0,0,0\n", "line 2: All weights are 0"),
        ("helpful,harmless,humor\nnan,0,1\n", "nan"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_csv_that_does_not_fit_is_refused(tmp_path, text, reason):
    with pytest.raises(WeightsError, match=reason) as caught:
        read(tmp_path, text)
    assert "weights.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "must be a list"),
        ("[]", "no weights in it"),
        ('{"objectives": ["a"], "weights": [[1]]}', "it names"),
        ('[{"helpful": 1, "harmless": 0}]', "it names"),
        (
            '{"objectives": ["humor", "helpful", "harmless"], "weights": [[1, 0, 0]]}',
            "but the policy's order is",
        ),
        ("[[1, 0]]", "row 1 has 2 values"),
        ("[[1, 0, null]]", "row 1 is not numbers"),
        ("[1, 0, 0]", "row 1 is 1"),
    ],
)
def test_json_that_does_not_fit_is_refused(tmp_path, text, reason):
    with pytest.raises(WeightsError, match=reason):
        read(tmp_path, text, "weights.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.csv"):
        load_weights_file(tmp_path / "nowhere.csv", NAMES)


@given(
    st.lists(st.tuples(*[st.floats(0.01, 1)] * 3), min_size=1, max_size=5),
    st.permutations(range(3)),
)
@settings(max_examples=30)
def test_only_the_policys_own_order_of_columns_is_read(tmp_path_factory, rows, order):
    weights = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    lines = [[NAMES[i] for i in order], *([repr(float(row[i])) for i in order] for row in weights)]
    path = tmp_path_factory.mktemp("weights") / "w.csv"
    path.write_text("\n".join(",".join(line) for line in lines))
    if list(order) == [0, 1, 2]:
        assert np.allclose(load_weights_file(path, NAMES), weights, atol=1e-12)
    else:
        with pytest.raises(WeightsError, match="order"):
            load_weights_file(path, NAMES)
