import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.core.loss import voted_loss
from moodpo.core.pairing import (
    matched_log_importance,
    pair_completions,
    preference_probabilities,
)

NAN, INF = float("nan"), float("inf")


def test_pairing_by_hand():
    utilities = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [NAN, 1.0], [5.0, -5.0]])
    identities = torch.tensor([[0, 1], [0, 1], [0, 1], [0, 1], [0, 0]])
    pairing = pair_completions(utilities, identities=identities)
    assert pairing.active.tolist() == [True, True, False, False, False]
    assert pairing.order()[:2].tolist() == [[0, 1], [1, 0]]
    assert pairing.ties.tolist() == [False, False, True, False, False]
    assert pairing.undefined.tolist() == [False, False, False, True, False]
    assert pairing.duplicates.tolist() == [False, False, False, False, True]


def test_the_best_of_several_meets_the_worst_of_them():
    utilities = torch.tensor([[1.0, 3.0, -1.0, 3.0], [NAN, 2.0, 1.0, INF], [NAN, NAN, 1.0, INF]])
    pairing = pair_completions(utilities)
    assert pairing.order()[:2].tolist() == [[1, 2], [1, 2]]
    assert pairing.active.tolist() == [True, True, False]
    assert pairing.undefined.tolist() == [False, False, True]


def test_preferences_by_hand():
    gaps = torch.tensor([2.0, 0.0, -1.0, NAN, INF])
    assert preference_probabilities(gaps).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    soft = preference_probabilities(gaps, temperature=1.0)
    torch.testing.assert_close(
        soft, torch.tensor([0.8808, 0.5, 0.2689, 0.0, 1.0]), atol=1e-4, rtol=0
    )


@given(st.floats(0.01, 20), st.floats(0.1, 10))
def test_soft_preferences_sum_to_one_and_end_in_hard_ones(gap, temperature):
    gaps = torch.tensor([gap, -gap], dtype=torch.float64)
    soft = preference_probabilities(gaps, temperature)
    assert float(soft.sum()) == pytest.approx(1.0)
    assert 0.5 < float(soft[0]) <= 1.0
    hard = preference_probabilities(gaps, 1e-6)
    torch.testing.assert_close(hard, preference_probabilities(gaps))


@given(st.floats(-8, 8), st.floats(0.2, 5), st.floats(0.05, 2))
def test_a_soft_label_is_satisfied_by_a_margin_of_its_gap(gap, temperature, beta):
    votes = preference_probabilities(torch.tensor([[gap, -gap]], dtype=torch.float64), temperature)
    margin = gap / temperature / beta
    logps = torch.tensor([[margin, 0.0]], dtype=torch.float64, requires_grad=True)
    reference, lengths = torch.zeros(1, 2).double(), torch.ones(1, 2).double()
    loss = voted_loss(logps, reference, lengths, votes, loss_type="sigmoid", beta=beta)
    loss.sum().backward()
    assert float(logps.grad.detach().abs().max()) < 1e-9
    p = float(votes[0, 0])
    entropy = -sum(q * math.log(q) for q in (p, 1 - p) if q)
    assert loss.item() == pytest.approx(entropy, abs=1e-9)


def test_infinite_utilities_are_undefined_not_winners():
    pairing = pair_completions(torch.tensor([[INF, 0.0], [-INF, 0.0], [INF, INF]]))
    assert not pairing.active.any()
    assert pairing.undefined.all()


def test_differences_within_the_tolerance_tie():
    pairing = pair_completions(torch.tensor([[0.0, 0.1], [0.0, 0.3]]), tolerance=0.2)
    assert pairing.ties.tolist() == [True, False]


@given(
    st.lists(
        st.tuples(st.floats(width=32), st.floats(width=32), st.booleans()), min_size=1, max_size=8
    )
)
def test_every_pair_has_exactly_one_fate_and_the_chosen_is_never_worse(rows):
    utilities = torch.tensor([[a, b] for a, b, _ in rows])
    identities = torch.tensor([[0, 0 if same else 1] for *_, same in rows])
    pairing = pair_completions(utilities, identities=identities)
    fates = torch.stack([pairing.active, pairing.ties, pairing.duplicates, pairing.undefined])
    assert (fates.sum(0) == 1).all()
    ordered = utilities.gather(1, pairing.order())[pairing.active]
    assert (ordered[:, 0] > ordered[:, 1]).all()


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
