from hypothesis import given
from hypothesis import strategies as st

from moodpo.training.batching import by_token_budget, spread_over_passes

LENGTHS = st.lists(st.integers(1, 50), max_size=20)


def test_a_budget_by_hand():
    assert list(by_token_budget([5, 2, 9, 3], 9)) == [[1, 3], [0], [2]]
    assert list(by_token_budget([], 9)) == []


def test_passes_by_hand():
    assert spread_over_passes([5, 2, 9, 3], 2) == [[1, 3], [0, 2]]
    assert spread_over_passes([5, 2], 3) == [[], [1], [0]]
    assert spread_over_passes([], 2) == [[], []]


def test_pairs_share_passes_within_a_budget():
    # In one pass 4 x 9 tokens, in two 2 x 9, in three at most 2 x 9 again.
    assert spread_over_passes([5, 2, 9, 3], 4, budget=36) == [[], [], [], [1, 3, 0, 2]]
    assert spread_over_passes([5, 2, 9, 3], 4, budget=35) == [[], [], [1, 3], [0, 2]]
    assert spread_over_passes([5, 2, 9, 3], 4, budget=1) == spread_over_passes([5, 2, 9, 3], 4)


def test_pairs_of_a_group_stay_together():
    assert spread_over_passes([5, 2, 9, 3], 2, groups=[0, 1, 1, 0]) == [[3, 0], [1, 2]]
    assert spread_over_passes([5, 2, 9, 3], 4, groups=[7] * 4) == [[], [], [], [1, 3, 0, 2]]


@given(LENGTHS, st.integers(1, 60))
def test_groups_hold_every_pair_once_within_the_budget(lengths, budget):
    groups = list(by_token_budget(lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


@given(LENGTHS, st.integers(1, 6), st.none() | st.integers(1, 400), st.integers(1, 20))
def test_passes_hold_every_pair_once_and_the_last_is_filled_first(
    lengths, num_passes, budget, num_groups
):
    groups = [i % num_groups for i in range(len(lengths))]
    passes = spread_over_passes(lengths, num_passes, groups=groups, budget=budget)
    owners = [{groups[i] for i in rows} for rows in passes]
    assert sum(map(len, owners)) == len(set(groups))
    assert len(passes) == num_passes
    assert sorted(i for rows in passes for i in rows) == list(range(len(lengths)))
    assert bool(passes[-1]) == bool(lengths)
    used = [rows for rows in passes if rows]
    if budget is not None and len(used) < min(num_passes, len(set(groups))):
        assert all(len(rows) * max(lengths[i] for i in rows) <= budget for rows in used)
