import pytest
import torch

from moodpo.records import Completion, PairBatch, RolloutBatch, dialogue_text, prompt_text

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


def test_a_rollout_gives_each_prompts_candidates_in_the_order_of_its_rewards():
    completions = [
        [[Completion((10 * b + 2 * m + j,), finished=True) for j in range(2)] for m in range(2)]
        for b in range(3)
    ]
    rollout = RolloutBatch(
        prompts=["a", "b", "c"],
        labels=torch.arange(18.0).view(3, 3, 2),
        prompt_ids=[((1,), (2,))] * 3,
        completions=[tuple(map(tuple, row)) for row in completions],
        texts=[(("x", "y"), ("x", "y"))] * 3,
        rewards=torch.zeros(3, 2, 2, 2),
    )
    assert len(rollout) == 3
    assert torch.equal(rollout.weights, rollout.labels[:, :2])
    ids = [[c.token_ids[0] for c in row] for row in rollout.candidates]
    assert ids == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]


@pytest.mark.parametrize("reference", [None, torch.tensor([[1.0, 2.0], [3.0, 4.0]])])
def test_selected_pairs_keep_their_order_and_what_is_not_there(reference):
    pairs = PairBatch(
        prompt_ids=[(1,), (2,)],
        completion_ids=[((3,), (4,)), ((5,), (6,))],
        weights=torch.eye(2),
        rewards=torch.arange(8.0).view(2, 2, 2),
        utilities=torch.tensor([[1.0, 0.0], [2.0, 0.0]]),
        rows=torch.tensor([0, 1]),
        labelings=torch.tensor([0, 1]),
        candidates=torch.tensor([[0, 1], [1, 0]]),
        relabeled=torch.tensor([[False, False], [True, True]]),
        ref_logps=reference,
    )
    turned = pairs.select([1, 0])
    assert turned.prompt_ids == [(2,), (1,)]
    assert turned.utilities[:, 0].tolist() == [2.0, 1.0]
    assert turned.weights.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    if reference is None:
        assert turned.ref_logps is None
    else:
        assert turned.ref_logps.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert len(pairs.select([])) == 0


def test_what_a_prompt_says():
    assert (prompt_text("Hi"), dialogue_text("Hi")) == ("Hi", "Hi")
    assert prompt_text(CHAT) == "Bye"
    assert dialogue_text(CHAT) == "Hi\n\nHello\n\nBye"
