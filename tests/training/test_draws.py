import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.core.simplex import antithetic_weights, sample_dirichlet
from moodpo.errors import WeightsError
from moodpo.training.draws import dirichlet_draw, draw_labels


@pytest.mark.parametrize("k", [2, 3, 8])
def test_draws_are_on_the_simplex(k):
    weights = dirichlet_draw(0.5, k)(range(50))
    assert (weights.shape, weights.dtype) == ((50, k), torch.float32)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))
    assert dirichlet_draw(1.0, k)([]).shape == (0, k)


def test_a_draw_is_the_dirichlet_of_its_seed():
    expected = sample_dirichlet(
        (2.0, 0.5),
        num_samples=1,
        num_objectives=2,
        generator=torch.Generator().manual_seed(7),
    )
    assert torch.equal(dirichlet_draw([2.0, 0.5], 2)([7]), expected)


def test_a_concentration_of_another_length_is_refused_at_once():
    with pytest.raises(WeightsError):
        dirichlet_draw([1.0, 1.0, 1.0], 2)


@given(st.permutations(range(6)), st.integers(1, 5))
def test_labels_are_the_same_however_the_batch_is_cut(order, cut):
    draw = dirichlet_draw(1.0, 3)
    whole = draw_labels(draw, range(6), (0, "train"), count=3)
    for part in (order[:cut], order[cut:]):
        assert torch.equal(draw_labels(draw, part, (0, "train"), count=3), whole[list(part)])


def test_labels_alternate_with_their_opposites():
    labels = draw_labels(dirichlet_draw(1.0, 3), [4], (0,), count=4)[0]  # [4, 3]
    torch.testing.assert_close(labels[1], antithetic_weights(labels[0]))
    torch.testing.assert_close(labels[3], antithetic_weights(labels[2]))
    assert not torch.allclose(labels[2], labels[0])
