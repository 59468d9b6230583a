import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from moodpo.core.simplex import (
    antithetic_weights,
    sample_dirichlet,
    simplex_corners,
    simplex_lattice,
)
from moodpo.errors import WeightsError


def draw(concentration, n, k, seed=0):
    return sample_dirichlet(
        concentration,
        num_samples=n,
        num_objectives=k,
        generator=torch.Generator().manual_seed(seed),
    )


@settings(deadline=None)
@given(
    concentration=st.floats(1e-3, 100),
    k=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)
def test_dirichlet_rows_lie_on_the_simplex(concentration, k, seed):
    weights = draw(concentration, 16, k, seed)
    assert weights.shape == (16, k)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(16))


@pytest.mark.parametrize("concentration", [[2.0, 3.0, 5.0], [0.3, 0.3, 0.3], [0.05, 0.1, 0.2]])
def test_dirichlet_has_the_mean_and_variance_of_the_distribution(concentration):
    weights = draw(concentration, 200_000, 3).double()
    a = torch.tensor(concentration, dtype=torch.float64)
    mean = a / a.sum()
    torch.testing.assert_close(weights.mean(0), mean, atol=4e-3, rtol=0)
    variance = mean * (1 - mean) / (a.sum() + 1)
    torch.testing.assert_close(weights.var(0), variance, atol=3e-3, rtol=0)


def test_dirichlet_is_a_function_of_its_generator_alone():
    state = torch.get_rng_state()
    assert torch.equal(draw(1.0, 5, 3, seed=7), draw(1.0, 5, 3, seed=7))
    assert not torch.equal(draw(1.0, 5, 3, seed=7), draw(1.0, 5, 3, seed=8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("concentration", [0.0, -1.0, [1.0, 0.0], [1.0, 1.0, 1.0], float("nan")])
def test_dirichlet_refuses_impossible_concentrations(concentration):
    with pytest.raises(WeightsError, match="concentration"):
        draw(concentration, 4, 2)


def test_lattice_by_hand():
    expected = torch.tensor([[0, 2], [1, 1], [2, 0]]) / 2
    assert torch.equal(simplex_lattice(2, 2), expected)


@settings(deadline=None)
@given(k=st.integers(1, 5), divisions=st.integers(1, 6))
def test_lattice_has_every_point_once(k, divisions):
    lattice = simplex_lattice(k, divisions)
    count = torch.tensor([divisions + k - 1, k - 1, divisions]).double() + 1
    expected = torch.exp(
        torch.lgamma(count[0]) - torch.lgamma(count[1]) - torch.lgamma(count[2])
    ).round()
    assert len(lattice) == int(expected)
    assert len(torch.unique(lattice, dim=0)) == len(lattice)
    torch.testing.assert_close(lattice.sum(-1), torch.ones(len(lattice)))


@pytest.mark.parametrize(("k", "divisions"), [(0, 3), (3, 0)])
def test_lattice_refuses_nothing(k, divisions):
    with pytest.raises(WeightsError, match="lattice"):
        simplex_lattice(k, divisions)


def test_corners_are_single_objectives():
    assert torch.equal(simplex_corners(3), torch.eye(3))


def test_antithetic_weights_by_hand():
    weights = torch.tensor([[0.7, 0.3], [1.0, 0.0]])
    torch.testing.assert_close(antithetic_weights(weights), 1 - weights)
    three = antithetic_weights(torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.3, 0.1]]))
    torch.testing.assert_close(
        three, torch.tensor([[0.0, 0.5, 0.5], [0.1 / 1.1, 0.4 / 1.1, 0.6 / 1.1]])
    )


@settings(deadline=None)
@given(k=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_antithetic_weights_reverse_the_order_and_stay_on_the_simplex(k, seed):
    weights = draw(1.0, 4, k, seed)
    opposite = antithetic_weights(weights)
    torch.testing.assert_close(opposite.sum(-1), torch.ones(4))
    assert (opposite >= 0).all()
    assert torch.equal(weights.argmax(-1), opposite.argmin(-1))
    # The reflection is its own inverse, normalized or not.
    torch.testing.assert_close(antithetic_weights(opposite), weights, atol=1e-5, rtol=1e-4)


def star_discrepancy(values):
    ordered = values.sort().values
    places = torch.arange(len(values), dtype=torch.float64) / len(values)
    return max((ordered - places).max(), (places + 1 / len(values) - ordered).max()).item()
