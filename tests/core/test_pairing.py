import hypothesis.strategies as st
import torch
from hypothesis import given

from moodpo.core.pairing import gap_threshold, objective_votes, pair_completions

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


def test_votes_by_hand():
    # The first objective prefers the first completion, the second the second; the third is tied.
    rewards = torch.tensor([[[1.0, 0.0, 5.0], [0.0, 2.0, 5.0]], [[NAN, 1.0, 2.0], [0.0, 0.0, 3.0]]])
    votes = objective_votes(rewards, torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    torch.testing.assert_close(votes, torch.tensor([[0.5, 0.3], [0.3, 0.2]]))


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


def test_gap_threshold_by_hand():
    gaps = torch.tensor([0.5, NAN, 3.0, 1.0, 2.0])
    assert gap_threshold(gaps, 0.5) == 2.0
    assert gap_threshold(gaps, 0.01) == 3.0
    assert gap_threshold(gaps, 1.0) == -INF
    assert gap_threshold(gaps[1:2], 0.5) == -INF


@given(
    st.lists(st.floats(0, 100, width=32), min_size=1, max_size=30, unique=True),
    st.floats(0.01, 0.99),
)
def test_the_threshold_keeps_the_asked_fraction(gaps, fraction):
    values = torch.tensor(gaps)
    kept = int((values >= gap_threshold(values, fraction)).sum())
    assert kept == max(1, round(fraction * len(gaps)))


def test_a_negative_weight_votes_for_the_lower_reward():
    rewards = torch.tensor([[[1.0, 5.0], [0.0, 2.0]]])
    votes = objective_votes(rewards, torch.tensor([[0.3, -0.7]]))
    torch.testing.assert_close(votes, torch.tensor([[0.3, 0.7]]))
