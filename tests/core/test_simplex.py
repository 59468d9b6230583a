import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from moodpo.core.simplex import (
    antithetic_weights,
    cube_to_simplex,
    kronecker_points,
    lattice_coordinates,
    lattice_simplices,
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


def test_kronecker_points_by_hand():
    # The golden ratio, and the plastic number 1.32471795724.
    golden = kronecker_points(range(4), num_dimensions=1, shift=[0.0]).flatten()
    assert golden.tolist() == pytest.approx([0.0, 0.6180339887, 0.2360679775, 0.8541019662])
    plastic = kronecker_points([1], num_dimensions=2, shift=[0.5, 0.5]).flatten()
    assert plastic.tolist() == pytest.approx([0.2548776662, 0.0698402910])


@settings(deadline=None)
@given(
    position=st.integers(0, 10**12),
    dimensions=st.integers(1, 7),
    shift=st.floats(0, 1, exclude_max=True),
)
def test_kronecker_windows_are_shifts_of_the_first_one(position, dimensions, shift):
    first = kronecker_points(range(8), num_dimensions=dimensions, shift=[0.0] * dimensions)
    window = kronecker_points(
        range(position, position + 8), num_dimensions=dimensions, shift=[shift] * dimensions
    )
    assert ((window >= 0) & (window < 1)).all()
    differences = (window - window[0] - first) % 1
    assert torch.minimum(differences, 1 - differences).max() < 1e-12


def star_discrepancy(values):
    ordered = values.sort().values
    places = torch.arange(len(values), dtype=torch.float64) / len(values)
    return max((ordered - places).max(), (places + 1 / len(values) - ordered).max()).item()


@settings(deadline=None)
@given(
    start=st.integers(0, 10**9),
    size=st.integers(8, 200),
    shift=st.floats(0, 1, exclude_max=True),
)
def test_every_window_has_a_low_star_discrepancy(start, size, shift):
    points = kronecker_points(range(start, start + size), num_dimensions=1, shift=[shift])
    # Independent points have 0.87 / sqrt(n) on average (the mean of Kolmogorov's distribution).
    assert star_discrepancy(points.flatten()) < 0.87 / size**0.5


def test_kronecker_points_need_a_shift_per_dimension():
    with pytest.raises(WeightsError, match="2 fractions for 3 dimensions"):
        kronecker_points([0], num_dimensions=3, shift=[0.0, 0.5])


def test_cube_to_simplex_by_hand():
    two = cube_to_simplex(torch.tensor([[0.0], [0.25], [1.0]]))
    torch.testing.assert_close(two, torch.tensor([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]]))
    three = cube_to_simplex(torch.tensor([[0.19, 0.5]]))  # 1 - sqrt(0.81), then half of the rest
    torch.testing.assert_close(three, torch.tensor([[0.1, 0.45, 0.45]]))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_cube_to_simplex_stays_on_the_simplex(point):
    weights = cube_to_simplex(torch.tensor(point, dtype=torch.float64))
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_cube_to_simplex_maps_uniform_to_uniform(k):
    middle = (torch.arange(60, dtype=torch.float64) + 0.5) / 60
    weights = cube_to_simplex(torch.cartesian_prod(*[middle] * (k - 1)).view(-1, k - 1))
    covariance = (torch.eye(k).double() - 1 / k) / (k * (k + 1))  # of Dirichlet(1)
    torch.testing.assert_close(weights.mean(0), torch.full((k,), 1 / k).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(weights.T.cov(correction=0), covariance, atol=1e-3, rtol=0)


def test_lattice_simplices_by_hand():
    assert lattice_simplices(2, 2).tolist() == [[1, 0], [2, 1]]
    # Rows (0,0,2) (0,1,1) (0,2,0) (1,0,1) (1,1,0) (2,0,0): three upright triangles and the middle.
    triangles = {frozenset(row) for row in lattice_simplices(3, 2).tolist()}
    assert triangles == {
        frozenset({0, 1, 3}),
        frozenset({1, 2, 4}),
        frozenset({3, 4, 5}),
        frozenset({1, 3, 4}),
    }


@settings(deadline=None)
@given(k=st.integers(2, 6), divisions=st.integers(1, 4))
def test_lattice_simplices_share_the_volume_evenly(k, divisions):
    simplices = lattice_simplices(k, divisions)
    assert len(simplices) == divisions ** (k - 1)
    assert len({frozenset(row) for row in simplices.tolist()}) == len(simplices)
    volumes = torch.linalg.det(simplex_lattice(k, divisions).double()[simplices]).abs()
    torch.testing.assert_close(volumes, torch.full_like(volumes, 1 / len(simplices)))


@pytest.mark.parametrize(("k", "divisions"), [(1, 3), (3, 0)])
def test_lattice_simplices_refuse_nothing(k, divisions):
    with pytest.raises(WeightsError, match="Small simplices"):
        lattice_simplices(k, divisions)


def test_lattice_coordinates_by_hand():
    rows, coordinates = lattice_coordinates(torch.tensor([[0.25, 0.75], [0.5, 0.5]]), 2)
    assert rows[0].tolist() == [1, 0]  # (1/2, 1/2) and (0, 1)
    assert coordinates.tolist()[0] == [0.5, 0.5]
    assert coordinates[1][rows[1] == 1].tolist() == [1.0]
    rows, coordinates = lattice_coordinates(torch.tensor([[0.2, 0.3, 0.5]]), 1)
    assert rows.tolist() == [[2, 1, 0]]
    assert coordinates[0].tolist() == pytest.approx([0.2, 0.3, 0.5])


@settings(deadline=None)
@given(
    k=st.integers(2, 6),
    divisions=st.integers(1, 4),
    concentration=st.sampled_from([0.02, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_lattice_coordinates_write_weights_by_the_corners_of_one_small_simplex(
    k, divisions, concentration, seed
):
    lattice = simplex_lattice(k, divisions)
    weights = torch.cat([draw(concentration, 16, k, seed), lattice, simplex_corners(k)])
    rows, coordinates = lattice_coordinates(weights, divisions)
    known = {frozenset(row) for row in lattice_simplices(k, divisions).tolist()}
    assert {frozenset(row) for row in rows.tolist()} <= known
    assert (coordinates >= 0).all()
    again = (coordinates[..., None] * lattice.double()[rows]).sum(1)
    torch.testing.assert_close(again, weights.double(), atol=1e-6, rtol=0)
