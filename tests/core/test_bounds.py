import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import tensor

from moodpo.core.bounds import feasible_first, violations

NAN = float("nan")


def test_violations_by_hand():
    rewards = tensor([[[1.0, 0.0], [0.2, 0.9]], [[0.5, 0.5], [NAN, 0.1]]])
    bounds = tensor([[0.5, 0.4], [NAN, 0.3]])
    expected = tensor([[0.4, 0.3], [0.0, 0.2]])
    torch.testing.assert_close(violations(rewards, bounds), expected)


def test_a_missing_reward_under_a_bound_is_not_a_kept_one():
    assert violations(tensor([[[NAN, 1.0]]]), tensor([[0.0, NAN]])).isnan().all()
    assert feasible_first(tensor([[1.0, 2.0]]), tensor([[NAN, 0.0]]))[0].isnan().tolist() == [
        True,
        False,
    ]


def test_utilities_under_bounds_by_hand():
    # Two keep their bounds, two do not: the least that does is worth 1, and those behind it
    # less by what they miss, however useful they are.
    utilities, missed = tensor([3.0, 1.0, 9.0, 5.0]), tensor([0.0, 0.0, 0.5, 0.25])
    assert feasible_first(utilities, missed).tolist() == [3.0, 1.0, 0.5, 0.75]
    # None keeps them: the nearest is best.
    assert feasible_first(utilities, missed + 1.0).tolist() == [-1.0, -1.0, -1.5, -1.25]


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 5))
def test_the_order_is_debs(seed, size):
    generator = torch.Generator().manual_seed(seed)
    utilities = torch.randn(3, size, generator=generator)
    missed = torch.rand(3, size, generator=generator) - 0.5
    missed = missed.clamp_min(0.0)
    ranked = feasible_first(utilities, missed)
    for u, v, r in zip(utilities.tolist(), missed.tolist(), ranked.tolist(), strict=True):
        # Deb's three rules, written out.
        order = sorted(range(size), key=lambda i: (v[i] > 0, v[i] if v[i] > 0 else -u[i]))
        assert sorted(range(size), key=lambda i: -r[i]) == order


def test_without_bounds_nothing_changes():
    utilities = torch.randn(2, 3, 4)
    assert torch.equal(feasible_first(utilities, torch.zeros(2, 1, 4)), utilities)
