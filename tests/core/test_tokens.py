"""Where completions lie in a batch, by hand."""

import torch

from moodpo.core.tokens import collate_pairs, collate_sequences

PROMPTS = [(1, 2), (3,)]


def test_sequences_are_padded_on_the_right():
    batch = collate_sequences(PROMPTS, [(5, 6), (7,)], pad_token_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 5, 6], [3, 7, 9, 9]]
    assert batch.predictors.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [5, 6, 7]
    assert batch.owners.tolist() == [0, 0, 1]
    assert (batch.num_completions, batch.attention_mask, batch.position_ids) == (2, None, None)


def test_a_pair_shares_its_prompt():
    batch = collate_pairs(PROMPTS, [((5,), (6, 7)), ((8,), (4,))], pad_token_id=9)
    assert batch.input_ids.tolist() == [[1, 2, 5, 6, 7], [3, 8, 4, 9, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 1, 1, 0, 0]]
    assert batch.predictors.tolist() == [1, 1, 3, 5, 5]
    assert batch.targets.tolist() == [5, 6, 7, 8, 4]
    assert batch.owners.tolist() == [0, 1, 1, 2, 3]
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],  # the second completion does not see the first
        [1, 1, 0, 1, 1],
    ]


def test_moving_a_batch_moves_every_tensor():
    moved = collate_pairs(PROMPTS, [((5,), (6,)), ((8,), (4,))], pad_token_id=9).to("meta")
    tensors = [getattr(moved, name) for name in moved.__slots__ if name != "num_completions"]
    assert {tensor.device for tensor in tensors} == {torch.device("meta")}
