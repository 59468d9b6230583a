import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.core.scalarization import chebyshev, linear, scalarize
from moodpo.errors import ConfigError

NAN = float("nan")
values = st.floats(-100, 100, width=32)


def test_linear_by_hand():
    rewards = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    torch.testing.assert_close(
        linear(rewards, torch.tensor([0.25, 0.75])), torch.tensor([1.75, 0.0])
    )


def test_chebyshev_by_hand():
    # Regrets from the ideal (1, 1) are (1, 3); weighted (0.5, 1.5); worst 1.5, sum 2.
    utility = chebyshev(
        torch.tensor([0.0, -2.0]),
        torch.tensor([0.5, 0.5]),
        ideal=torch.tensor([1.0, 1.0]),
        augmentation=0.1,
    )
    torch.testing.assert_close(utility, torch.tensor(-1.7))


@given(st.lists(values, min_size=3, max_size=3), st.integers(0, 2))
def test_raising_a_weighted_reward_never_lowers_a_utility(rewards, which):
    before = torch.tensor(rewards)
    after = before.clone()
    after[which] += 1.0
    weights = torch.tensor([0.2, 0.3, 0.5])
    assert linear(after, weights) > linear(before, weights) - 1e-3
    assert chebyshev(after, weights) > chebyshev(before, weights) - 1e-3


def test_chebyshev_prefers_the_concave_middle_that_linear_never_picks():
    # Three points of a concave front: the middle lies below the line between the ends.
    points = torch.tensor([[1.0, 0.0], [0.4, 0.4], [0.0, 1.0]])
    even = torch.tensor([0.5, 0.5])
    assert linear(points, even).argmax() != 1
    assert chebyshev(points, even, ideal=torch.ones(2)).argmax() == 1


def test_an_objective_without_weight_takes_no_part_even_when_undefined():
    rewards = torch.tensor([[1.0, NAN]])
    corner = torch.tensor([1.0, 0.0])
    assert linear(rewards, corner).tolist() == [1.0]
    assert chebyshev(rewards, corner).isfinite().all()
    assert linear(rewards, torch.tensor([0.5, 0.5])).isnan().all()
    assert chebyshev(rewards, torch.tensor([0.5, 0.5])).isnan().all()


def test_scalarize_gives_each_prompt_its_own_weights():
    rewards = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 2)  # [2, 2, 2]
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert scalarize(rewards, weights, "linear").tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert scalarize(rewards, weights, "chebyshev").argmax(-1).tolist() == [0, 1]
    with pytest.raises(ConfigError, match="'product'"):
        scalarize(rewards, weights, "product")
