"""Token ids out of any container, and within a model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from moodpo.models.tokens import (
    embedding_rows,
    first_valid_id,
    head_rows,
    read_token_ids,
    valid_ids,
)
from tiny_policies import tiny_model


@pytest.mark.parametrize(
    ("held", "ids"),
    [
        (None, ()),
        (7, (7,)),
        (0, (0,)),
        ([7, 3], (7, 3)),
        ((7, 3), (7, 3)),
        ({7}, (7,)),
        (range(2), (0, 1)),
        (np.int64(7), (7,)),
        (np.array([7, 3]), (7, 3)),
        (np.array(7), (7,)),
        (torch.tensor(7), (7,)),
        (torch.tensor([7, 3]), (7, 3)),
        ([torch.tensor(7), None, [3]], (7, 3)),
        ([], ()),
    ],
)
def test_ids_are_read_from_any_container(held, ids):
    assert read_token_ids(held) == ids
    assert all(type(token) is int for token in read_token_ids(held))


def test_rows_are_the_models():
    model = tiny_model()
    assert embedding_rows(model) == head_rows(model) == model.config.vocab_size
    assert embedding_rows(SimpleNamespace()) is None
    headless = SimpleNamespace(
        get_input_embeddings=lambda: nn.Embedding(9, 2), get_output_embeddings=lambda: None
    )
    assert head_rows(headless) == 9


def test_only_what_the_model_can_read_is_valid():
    model = tiny_model()
    rows = model.config.vocab_size
    assert valid_ids((rows, 3, -1, rows - 1), model) == (3, rows - 1)
    assert valid_ids((10**6,), SimpleNamespace()) == (10**6,)
    assert first_valid_id((None, rows, 5), model) == 5
    assert first_valid_id((None, rows), model) == first_valid_id((), model) == 0
