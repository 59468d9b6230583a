import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from moodpo.core.simplex import lattice_coordinates, sample_dirichlet
from moodpo.errors import ConfigError, ManifestError, WeightsError
from moodpo.training.samplers import (
    WEIGHT_SAMPLERS,
    CornerSampler,
    DirichletSampler,
    FrontLattice,
    FrontSampler,
    SeededSampler,
    StratifiedSampler,
    WeightSampler,
    as_sampler,
    fit_front,
    front_statistics,
    make_sampler,
    traversal_speeds,
)

NAN = float("nan")


def draw(sampler, positions, *, number=0, seed=0):
    seeds = [1_000_003 * (seed + 1) + 7 * p + number for p in positions]
    return sampler.draw(seeds, positions=list(positions), number=number)


def steep_rewards(weights, noise=0.0, seed=0):
    """`[B, 2, 2]`: the trade-off turns within a narrow band around the weights (0.3, 0.7)."""
    turn = torch.sigmoid(12 * (weights[:, 0] - 0.3))
    means = torch.stack([turn, 1 - turn], dim=-1)[:, None, :]
    generator = torch.Generator().manual_seed(seed)
    return means + noise * torch.randn(len(weights), 2, 2, generator=generator)


def steps(sampler, count, *, size=32, rewards=steep_rewards, **options):
    for step in range(count):
        weights = draw(sampler, range(step * size, (step + 1) * size))
        sampler.observe(weights, rewards(weights, seed=step, **options))
        sampler.absorb(sampler.pending())
    return sampler


def every_sampler(num_objectives):
    samplers = [make_sampler(name, num_objectives=num_objectives) for name in WEIGHT_SAMPLERS]
    samplers.append(
        steps(
            FrontSampler(1.0, num_objectives),
            2,
            rewards=lambda weights, seed: (weights**3)[:, None, :].expand(-1, 2, -1),
        )
    )
    return samplers


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_every_sampler_draws_from_the_simplex(k):
    for sampler in every_sampler(k):
        weights = draw(sampler, range(50))
        assert weights.shape == (50, k)
        assert weights.dtype == torch.float32
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(50))
        assert draw(sampler, []).shape == (0, k)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(8)), cut=st.integers(1, 7), number=st.integers(0, 2))
def test_draws_are_the_same_however_the_batch_is_cut(order, cut, number):
    for sampler in every_sampler(2):
        whole = draw(sampler, range(8), number=number)
        for part in (order[:cut], order[cut:]):
            assert torch.equal(draw(sampler, part, number=number), whole[list(part)])


def test_draws_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    for sampler in every_sampler(2):
        assert torch.equal(draw(sampler, range(5)), draw(sampler, range(5)))
    assert torch.equal(torch.get_rng_state(), state)


def test_dirichlet_draws_are_those_of_each_seed_alone():
    weights = DirichletSampler([2.0, 0.5], 2).draw([5, 9], positions=[0, 1])
    for row, seed in zip(weights, (5, 9), strict=True):
        alone = sample_dirichlet(
            [2.0, 0.5],
            num_samples=1,
            num_objectives=2,
            generator=torch.Generator().manual_seed(seed),
        )
        assert torch.equal(row, alone[0])


@pytest.mark.parametrize("sampler", [DirichletSampler, CornerSampler, FrontSampler])
@pytest.mark.parametrize("concentration", [0.0, [1.0, 1.0, 1.0], []])
def test_impossible_concentrations_are_refused_at_once(sampler, concentration):
    with pytest.raises(WeightsError, match="concentration"):
        sampler(concentration, 2)


def test_corners_come_as_often_as_asked_and_evenly():
    weights = draw(CornerSampler(1.0, 3, corner_probability=0.3), range(6000))
    corners = weights.amax(-1) == 1
    assert corners.float().mean().item() == pytest.approx(0.3, abs=0.02)
    shares = weights[corners].mean(0)
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), atol=0.04, rtol=0)
    assert torch.equal(weights[~corners], draw(DirichletSampler(1.0, 3), range(6000))[~corners])


def test_corner_probabilities_at_the_ends():
    never = draw(CornerSampler(0.5, 3, corner_probability=0.0), range(100))
    assert torch.equal(never, draw(DirichletSampler(0.5, 3), range(100)))
    always = draw(CornerSampler(0.5, 3, corner_probability=1.0), range(100))
    assert (always.amax(-1) == 1).all()


@pytest.mark.parametrize("probability", [-0.1, 1.1, NAN])
def test_shares_out_of_range_are_refused(probability):
    with pytest.raises(ConfigError, match="corner_probability must be at least 0 and at most 1"):
        CornerSampler(1.0, 2, corner_probability=probability)
    with pytest.raises(ConfigError, match="exploration"):
        FrontSampler(1.0, 2, exploration=probability)


def test_stratified_draws_by_hand():
    sampler = StratifiedSampler(1.0, 2)
    weights = draw(sampler, [0, 1, 2]).double()[:, 0]
    steps = (weights[1:] - weights[:-1]) % 1  # the golden ratio, whatever the shift
    assert steps.tolist() == pytest.approx([0.6180340, 0.6180340], abs=1e-6)


def cell_unevenness(weights, divisions):
    """Pearson's statistic over small simplices of equal volume."""
    rows, _ = lattice_coordinates(weights, divisions)
    cells = torch.tensor([sum(2**r for r in row) for row in rows.tolist()])
    counts = cells.unique(return_counts=True)[1].double()
    expected = len(weights) / divisions ** (weights.shape[1] - 1)
    empty = divisions ** (weights.shape[1] - 1) - len(counts)
    return (((counts - expected) ** 2).sum() / expected + empty * expected).item()


@pytest.mark.parametrize(("k", "divisions"), [(2, 8), (3, 4), (4, 2)])
@pytest.mark.parametrize("size", [16, 64])
def test_every_stretch_of_a_stratified_run_is_more_even_than_chance(k, divisions, size):
    stratified, independent = StratifiedSampler(1.0, k), DirichletSampler(1.0, k)
    starts = range(0, 40 * 37, 37)  # within steps and across them
    even, chance = (
        [cell_unevenness(draw(s, range(start, start + size)), divisions) for start in starts]
        for s in (stratified, independent)
    )
    assert sum(even) < 0.7 * sum(chance)
    assert max(even) < max(chance)


def test_a_stratified_draw_is_uniform_over_runs():
    rows = torch.cat([draw(StratifiedSampler(1.0, 3, seed=s), [11], number=1) for s in range(3000)])
    covariance = (torch.eye(3) - 1 / 3) / 12
    torch.testing.assert_close(rows.mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(rows.T.cov(), covariance, atol=0.01, rtol=0)


def test_further_draws_of_a_prompt_are_shifted():
    sampler = StratifiedSampler(1.0, 2)
    first, second = (draw(sampler, range(20), number=n)[:, 0] for n in (0, 1))
    shifts = (second - first) % 1
    assert 0.01 < shifts[0] < 0.99
    torch.testing.assert_close(shifts, shifts[:1].expand(20), atol=1e-5, rtol=0)


def test_stratified_weights_are_uniform_only():
    with pytest.raises(ConfigError, match=r"concentration 1; got 0\.5"):
        StratifiedSampler(0.5, 2)
    with pytest.raises(ConfigError, match="concentration 1"):
        StratifiedSampler([1.0, 2.0], 2)
    assert draw(StratifiedSampler([1.0, 1.0], 2), [0]).shape == (1, 2)


@pytest.mark.parametrize(("k", "points", "cells"), [(2, 11, 10), (3, 36, 49), (4, 35, 64)])
def test_the_front_lattice_is_the_finest_of_36_points(k, points, cells):
    lattice = FrontLattice.of(k)
    assert lattice.points.shape == (points, k)
    assert lattice.simplices.shape == (cells, k)
    for simplex, edges in zip(lattice.simplices, lattice.simplex_edges, strict=True):
        assert set(lattice.edges[edges].flatten().tolist()) == set(simplex.tolist())


def test_front_statistics_by_hand():
    lattice = FrontLattice.of(2, 1)  # points (0, 1) and (1, 0)
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    rewards = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, NAN]]])
    statistics = front_statistics(weights, rewards, lattice)  # means (2, 2); the other is left out
    gram = [0.75 * 0.75, 0.75 * 0.25, 0.25 * 0.75, 0.25 * 0.25]
    assert statistics.tolist() == [1.0, 8.0, *gram, 1.5, 1.5, 0.5, 0.5]


def three_points():
    """One prompt at each point of the lattice with 2 divisions, rewards 0, 8 and 8."""
    lattice = FrontLattice.of(2, 2)
    rewards = torch.tensor([[0.0, 0.0], [8.0, 0.0], [8.0, 0.0]])[:, None, :]
    return front_statistics(lattice.points, rewards, lattice), lattice


def test_front_fit_by_hand():
    # M = I + L = [[2, -1, 0], [-1, 3, -1], [0, -1, 2]], of determinant 8; Q = 128 - 104, n - 1 = 2.
    statistics, lattice = three_points()
    values, covariance = fit_front(statistics, lattice, precisions=[1.0])
    inverse = torch.tensor([[5.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 5.0]]).double() / 8
    torch.testing.assert_close(values[:, 0], torch.tensor([3.0, 6.0, 7.0]).double())
    torch.testing.assert_close(values[:, 1], torch.zeros(3).double())
    torch.testing.assert_close(covariance, 12 * inverse)
    # Edges of squared lengths 3² + 7.5 and 1² + 7.5, sqrt(1/2) apart.
    speeds = traversal_speeds(values, covariance, lattice)
    torch.testing.assert_close(speeds**2, torch.tensor([33.0, 17.0]).double())


@pytest.mark.parametrize(("k", "noise"), [(2, 0.05), (2, 3.0), (3, 0.5)])
def test_front_fit_maximizes_the_restricted_likelihood(k, noise):
    lattice = FrontLattice.of(k, 4)
    generator = torch.Generator().manual_seed(1)
    weights = sample_dirichlet(1.0, num_samples=60, num_objectives=k, generator=generator)
    rewards = (weights**2 + noise * torch.randn(60, k, generator=generator)).double()
    rows, coordinates = lattice_coordinates(weights, 4)
    basis = torch.zeros(60, len(lattice.points)).double().scatter_(1, rows, coordinates)
    prior = basis @ torch.linalg.pinv(lattice.laplacian()) @ basis.T
    ones = torch.ones(60, 1).double()

    def deviance(precision):
        inverse = torch.linalg.inv(torch.eye(60).double() + prior / precision)
        level = ones.T @ inverse @ ones
        rest = inverse - inverse @ ones @ ones.T @ inverse / level
        unexplained = (rewards * (rest @ rewards)).sum()
        return 59 * unexplained.log() - inverse.logdet() + level.log()

    grid = [0.25, 4.0, 64.0, 1024.0]
    best = min(grid, key=deviance)
    statistics = front_statistics(weights, rewards[:, None, :], lattice)
    chosen = fit_front(statistics, lattice, precisions=grid)
    for ours, expected in zip(
        chosen, fit_front(statistics, lattice, precisions=[best]), strict=True
    ):
        assert torch.equal(ours, expected)


def test_front_fit_is_exact_where_data_are_many_and_clean():
    lattice = FrontLattice.of(3)
    weights = draw(DirichletSampler(1.0, 3), range(3000))
    slopes = torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, 0.0], [0.5, 0.0, 1.0]])
    statistics = front_statistics(weights, (weights @ slopes)[:, None, :], lattice)
    values, _ = fit_front(statistics, lattice)
    torch.testing.assert_close(values, lattice.points @ slopes.double(), atol=0.02, rtol=0)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 15), order=st.permutations(range(16)))
def test_statistics_add_up_exactly_however_they_are_split(seed, cut, order):
    lattice = FrontLattice.of(2)
    generator = torch.Generator().manual_seed(seed)
    weights = sample_dirichlet(1.0, num_samples=16, num_objectives=2, generator=generator)
    rewards = 5 * torch.randn(16, 2, 2, generator=generator)
    whole = front_statistics(weights, rewards, lattice)
    parts = [list(order[:cut]), list(order[cut:])]
    split = sum(front_statistics(weights[p], rewards[p], lattice) for p in parts)
    assert torch.equal(split, whole)


def test_two_processes_learn_what_one_does():
    alone, first, second = (FrontSampler(1.0, 2) for _ in range(3))
    for step in range(3):
        weights = draw(alone, range(step * 8, step * 8 + 8))
        rewards = steep_rewards(weights, noise=0.3, seed=step)
        for sampler, rows in ((alone, slice(8)), (first, slice(3)), (second, slice(3, 8))):
            sampler.observe(weights[rows], rewards[rows])
        alone.absorb(alone.pending())
        totals = first.pending() + second.pending()
        first.absorb(totals)
        second.absorb(totals)
        for sampler in (first, second):
            assert torch.equal(sampler.probabilities(), alone.probabilities())
            assert not sampler.pending().any()
    assert torch.equal(draw(second, range(30)), draw(alone, range(30)))


def test_observations_count_only_once_absorbed():
    sampler = FrontSampler(1.0, 2)
    before = draw(sampler, range(40))
    assert torch.equal(before, draw(DirichletSampler(1.0, 2), range(40)))
    sampler.observe(before, steep_rewards(before))
    assert torch.equal(draw(sampler, range(40)), before)
    sampler.absorb(sampler.pending())
    assert not torch.equal(draw(sampler, range(40)), before)
    assert torch.equal(draw(sampler.constant(), range(40)), before)


def test_old_statistics_decay():
    sampler = FrontSampler(1.0, 2, decay=0.5, divisions=1)
    weights = torch.tensor([[0.0, 1.0]])
    sampler.observe(weights, torch.tensor([[[2.0, 0.0]]]))
    sampler.absorb(sampler.pending())
    sampler.absorb(sampler.pending())
    assert sampler.state_dict()["statistics"] == [0.5, 2.0, 0.5, 0, 0, 0, 1.0, 0, 0, 0]


def along_the_front(weights):
    """How uneven draws are along the front: the largest gap of their arc lengths to uniform."""
    ends = steep_rewards(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))[:, 0, 0]
    lengths = ((steep_rewards(weights)[:, 0, 0] - ends[0]) / (ends[1] - ends[0])).sort().values
    return (lengths - torch.arange(len(weights)) / len(weights)).abs().max().item()


def test_the_front_sampler_evens_the_front_out():
    uniform = along_the_front(draw(DirichletSampler(1.0, 2), range(2000)))
    sampler = steps(FrontSampler(1.0, 2), 40, noise=0.3)
    assert uniform > 0.4
    assert along_the_front(draw(sampler, range(2000))) < 0.7 * uniform
    greedy = steps(FrontSampler(1.0, 2, exploration=0.0), 40, noise=0.3)
    assert along_the_front(draw(greedy, range(2000))) < 0.5 * uniform


def test_exploration_keeps_every_weight_in_reach():
    sampler = steps(FrontSampler(1.0, 2, exploration=0.5), 20)
    flat = draw(sampler, range(4000))[:, 0] > 0.8  # a fifth of the simplex, where nothing moves
    assert flat.float().mean() > 0.09
    explorer = steps(FrontSampler(0.5, 2, exploration=1.0), 3)
    assert torch.equal(draw(explorer, range(50)), draw(DirichletSampler(0.5, 2), range(50)))


def noise_alone(weights, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(weights), 2, weights.shape[1], generator=generator)


@pytest.mark.parametrize("k", [2, 3])
def test_noise_does_not_pass_for_a_front(k):
    sampler = steps(FrontSampler(1.0, k), 20, rewards=noise_alone)
    probabilities = sampler.probabilities() * len(sampler.lattice.simplices)
    assert probabilities.min() > 0.7
    assert probabilities.max() < 1.4


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_rewards_that_never_change_leave_the_weights_uniform(value):
    sampler = steps(
        FrontSampler(1.0, 2),
        3,
        rewards=lambda weights, seed: torch.full((len(weights), 2, 2), value),
    )
    assert sampler.probabilities().tolist() == pytest.approx([0.1] * 10, rel=0.2)


def test_three_objectives_visit_the_small_simplices_where_rewards_move():
    def corner(weights, seed):
        means = torch.sigmoid(20 * (weights[:, :1] - 0.7)) * torch.ones(1, 3)
        return means[:, None, :].expand(-1, 2, -1)

    sampler = steps(FrontSampler(1.0, 3), 30, rewards=corner)
    weights = draw(sampler, range(3000))
    near = (weights[:, 0] - 0.7).abs() < 0.15  # 0.18 of the simplex
    assert near.float().mean() > 0.35


def test_a_batch_without_scores_teaches_nothing():
    sampler = FrontSampler(1.0, 2)
    weights = draw(sampler, range(4))
    sampler.observe(weights, torch.full((4, 2, 2), NAN))
    sampler.absorb(sampler.pending())
    assert torch.equal(draw(sampler, range(4)), weights)


def test_state_goes_through_json_bit_for_bit():
    sampler = steps(FrontSampler(1.0, 3), 3, rewards=noise_alone)
    restored = FrontSampler(1.0, 3)
    restored.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert torch.equal(restored.probabilities(), sampler.probabilities())
    assert torch.equal(draw(restored, range(50)), draw(sampler, range(50)))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"divisions": 10, "statistics": "many"},
        {"divisions": 10, "statistics": [1.0]},
        FrontSampler(1.0, 3).state_dict(),
    ],
)
def test_states_of_other_samplers_are_refused(state):
    with pytest.raises(ManifestError, match=r"Resume with the .*sampler"):
        FrontSampler(1.0, 2).load_state_dict(state)


def test_the_front_of_many_objectives_is_refused():
    with pytest.raises(ConfigError, match="2 to 8 objectives; got 9"):
        FrontSampler(1.0, 9)


@pytest.mark.parametrize("name", ["dirichlet", "corners", "stratified"])
def test_samplers_without_a_memory_have_nothing_to_learn_or_keep(name):
    sampler = make_sampler(name, num_objectives=2)
    weights = draw(sampler, range(4))
    sampler.observe(weights, steep_rewards(weights))
    assert sampler.pending().numel() == 0
    sampler.absorb(sampler.pending())
    assert sampler.state_dict() == {}
    sampler.load_state_dict({})
    assert sampler.constant() is sampler
    assert torch.equal(draw(sampler, range(4)), weights)


def test_a_plain_function_of_seeds_is_a_sampler():
    sampler = as_sampler(lambda seeds: torch.tensor([[1.0, 0.0]]).expand(len(seeds), 2))
    assert isinstance(sampler, SeededSampler)
    assert draw(sampler, range(3)).tolist() == [[1.0, 0.0]] * 3
    assert as_sampler(sampler) is sampler


def test_samplers_are_made_by_name():
    corners = make_sampler("corners", num_objectives=3, corner_probability=1.0)
    assert (draw(corners, range(20)).amax(-1) == 1).all()
    front = make_sampler("front", num_objectives=2, exploration=0.25, concentration=[0.5])
    assert front.exploration == 0.25
    other, same = (make_sampler("stratified", num_objectives=2, seed=s) for s in (1, 0))
    assert not torch.equal(draw(other, range(3)), draw(same, range(3)))
    with pytest.raises(ConfigError, match=r"'sobol'\. Use one of dirichlet, corners, strat"):
        make_sampler("sobol", num_objectives=2)


def test_a_sampler_of_ones_own_must_draw():
    with pytest.raises(NotImplementedError):
        WeightSampler().draw([0], positions=[0])


def test_opposites_are_a_samplers_own():
    sampler = make_sampler("dirichlet", num_objectives=2)
    found = sampler.opposite(torch.tensor([[0.3, 0.7]]))
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.3]]))
