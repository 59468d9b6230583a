import torch
from hypothesis import given
from hypothesis import strategies as st

from moodpo.core.importance import matched_log_importance


def test_only_completions_with_a_pair_of_their_own_are_matched():
    # Prompt 0: its own pair (0, 1) and a relabeled one (1, 0). Prompt 1: relabeled only.
    values = matched_log_importance(
        torch.tensor([[-2.0, -6.0], [-9.0, -4.0], [-1.0, -1.0]]),
        torch.tensor([[2.0, 3.0], [3.0, 2.0], [1.0, 1.0]]),
        prompts=torch.tensor([0, 0, 1]),
        candidates=torch.tensor([[0, 1], [1, 0], [0, 1]]),
        relabeled=torch.tensor([[False, False], [True, True], [True, True]]),
    )
    # Candidate 1: (-9 + 6) / 3; candidate 0: (-4 + 2) / 2.
    assert values.tolist() == [-1.0, -1.0]


def test_completions_of_one_pair_may_differ_in_whose_they_are():
    # A prompt sampled under two vectors, a completion each: each pair has one of its own.
    values = matched_log_importance(
        torch.tensor([[-2.0, -6.0], [-4.0, -8.0]]),
        torch.tensor([[2.0, 4.0], [4.0, 2.0]]),
        prompts=torch.tensor([0, 0]),
        candidates=torch.tensor([[0, 1], [1, 0]]),
        relabeled=torch.tensor([[False, True], [False, True]]),
    )
    # Candidate 1: (-6 + 4) / 4; candidate 0: (-8 + 2) / 2.
    assert values.tolist() == [-0.5, -3.0]


@given(st.integers(0, 6))
def test_equal_log_probabilities_have_importance_one(count):
    values = matched_log_importance(
        torch.zeros(count, 2),
        torch.ones(count, 2),
        prompts=torch.zeros(count, dtype=torch.long),
        candidates=torch.tensor([[0, 1]]).expand(count, 2),
        relabeled=(torch.arange(count) > 0)[:, None].expand(count, 2),
    )
    assert values.numel() == 2 * max(count - 1, 0)
    assert not values.any()
