import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.choices import LOSS_TYPES
from moodpo.core.loss import (
    dpo_loss,
    hinge_loss,
    imitation_loss,
    ipo_loss,
    preference_loss,
    robust_loss,
    voted_loss,
)
from moodpo.errors import ConfigError

# log-ratios chosen +1, rejected -0.5: a margin of 1.5 nats
POLICY = torch.tensor([[-10.0, -12.5]])
REFERENCE = torch.tensor([[-11.0, -12.0]])
LENGTHS = torch.tensor([[2.0, 4.0]])


def softplus(x):
    return math.log1p(math.exp(x))


def test_dpo_loss_by_hand():
    expected = softplus(-0.2 * 1.5)  # -log sigmoid(0.3)
    assert dpo_loss(POLICY, REFERENCE, beta=0.2).item() == pytest.approx(expected)


def test_conservative_dpo_loss_by_hand():
    expected = 0.9 * softplus(-0.3) + 0.1 * softplus(0.3)
    loss = dpo_loss(POLICY, REFERENCE, beta=0.2, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected)


def test_robust_loss_by_hand():
    expected = (0.9 * softplus(-0.3) - 0.1 * softplus(0.3)) / 0.8
    loss = robust_loss(POLICY, REFERENCE, beta=0.2, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected)


def test_ipo_loss_by_hand():
    # Per token: chosen +1 / 2, rejected -0.5 / 4; margin 0.625; target 1 / 0.4 = 2.5.
    loss = ipo_loss(POLICY, REFERENCE, LENGTHS, beta=0.2)
    assert loss.item() == pytest.approx((0.625 - 2.5) ** 2)


def test_hinge_loss_by_hand():
    assert hinge_loss(POLICY, REFERENCE, beta=0.2).item() == pytest.approx(0.7)
    assert hinge_loss(POLICY, REFERENCE, beta=1.0).item() == 0.0


def test_robust_loss_is_unbiased_under_flips():
    flipped_policy, flipped_reference = POLICY.flip(-1), REFERENCE.flip(-1)
    kwargs = {"beta": 0.2, "label_smoothing": 0.2}
    mean = 0.8 * robust_loss(POLICY, REFERENCE, **kwargs) + 0.2 * robust_loss(
        flipped_policy, flipped_reference, **kwargs
    )
    torch.testing.assert_close(mean, dpo_loss(POLICY, REFERENCE, beta=0.2))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_preference_loss_dispatches(loss_type):
    expected = {
        "sigmoid": dpo_loss(POLICY, REFERENCE, beta=0.2, label_smoothing=0.1),
        "robust": robust_loss(POLICY, REFERENCE, beta=0.2, label_smoothing=0.1),
        "ipo": ipo_loss(POLICY, REFERENCE, LENGTHS, beta=0.2),
        "hinge": hinge_loss(POLICY, REFERENCE, beta=0.2),
    }[loss_type]
    loss = preference_loss(
        POLICY, REFERENCE, LENGTHS, loss_type=loss_type, beta=0.2, label_smoothing=0.1
    )
    torch.testing.assert_close(loss, expected)


def test_preference_loss_refuses_unknown_types():
    with pytest.raises(ConfigError, match="'kto'"):
        preference_loss(POLICY, REFERENCE, LENGTHS, loss_type="kto", beta=0.1)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradients_are_those_of_finite_differences(loss_type):
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([[3, 5]] * 3)
    assert torch.autograd.gradcheck(
        lambda p: preference_loss(
            p, reference, lengths, loss_type=loss_type, beta=0.3, label_smoothing=0.1
        ),
        policy.requires_grad_(),
    )


@given(margin=st.floats(-20, 20), shift=st.floats(-50, 50))
def test_dpo_depends_on_the_margin_alone(margin, shift):
    reference = torch.zeros(1, 2, dtype=torch.float64)
    policy = torch.tensor([[margin + shift, shift]], dtype=torch.float64)
    expected = softplus(-0.5 * margin)
    assert dpo_loss(policy, reference, beta=0.5).item() == pytest.approx(expected, abs=1e-9)


def test_voted_loss_by_hand():
    votes = torch.tensor([[0.7, 0.2]])
    loss = voted_loss(POLICY, REFERENCE, LENGTHS, votes, loss_type="sigmoid", beta=0.2)
    assert loss.item() == pytest.approx(0.7 * softplus(-0.3) + 0.2 * softplus(0.3))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_an_undivided_vote_is_the_loss_itself(loss_type):
    votes = torch.tensor([[1.0, 0.0]])
    plain = preference_loss(POLICY, REFERENCE, LENGTHS, loss_type=loss_type, beta=0.2)
    voted = voted_loss(POLICY, REFERENCE, LENGTHS, votes, loss_type=loss_type, beta=0.2)
    assert torch.equal(voted, plain)
    reverse = voted_loss(
        *(t.flip(-1) for t in (POLICY, REFERENCE, LENGTHS, votes)), loss_type=loss_type, beta=0.2
    )
    torch.testing.assert_close(reverse, plain)


def test_imitation_loss_by_hand():
    assert imitation_loss(POLICY, LENGTHS).tolist() == [5.0]


def test_gradients_of_the_further_losses_are_those_of_finite_differences():
    logps = torch.tensor([[-10.0, -12.5], [-7.75, -9.0]]).double().requires_grad_()
    ref_logps = torch.tensor([[-11.0, -12.0], [-8.0, -8.0]]).double()
    votes = torch.tensor([[0.7, 0.2]]).double()
    lengths = torch.full_like(ref_logps, 3.0)
    for loss in (
        lambda x: imitation_loss(x, lengths),
        lambda x: voted_loss(x, ref_logps, lengths, votes, loss_type="sigmoid", beta=0.3),
    ):
        assert torch.autograd.gradcheck(loss, [logps])
