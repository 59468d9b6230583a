from __future__ import annotations

import pytest
import torch
from torch import nn

from moodpo.models.modes import cast_parameters, rollout_dtype, rollout_mode


class Tied(nn.Module):
    """Two layers that share a weight, a dropout, a buffer, and a flag to checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("frequencies", torch.ones(3))
        self.gradient_checkpointing = True

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(self.first(inputs)))  # type: ignore[no-any-return]


def test_modes_are_set_and_restored_module_by_module() -> None:
    model = Tied().train()
    model.dropout.eval()  # as somebody had frozen it
    with rollout_mode(model, dtype=None, steps=1):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert model.gradient_checkpointing is False
    assert torch.is_grad_enabled()
    assert model.training
    assert model.first.training
    assert not model.dropout.training
    assert model.gradient_checkpointing is True


def test_modes_are_restored_after_an_error() -> None:
    model = Tied().train()
    before = dict(model.named_parameters())
    with (
        pytest.raises(RuntimeError, match="stop"),
        rollout_mode(model, dtype=torch.bfloat16, steps=99),
    ):
        raise RuntimeError("stop")
    assert model.training
    assert model.gradient_checkpointing
    assert "forward" not in model.first.__dict__
    assert all(p is before[name] for name, p in model.named_parameters())


def test_casting_touches_references_not_parameters() -> None:
    model = Tied()
    before = model.first.weight
    before.grad = torch.ones_like(before)
    with cast_parameters(model, torch.bfloat16):
        assert model.first.weight.dtype == torch.bfloat16
        assert model.second.weight is model.first.weight  # tied ones stay tied
        assert model.frequencies.dtype == torch.float32
        assert model.first.weight.tolist() == before.bfloat16().tolist()
    assert model.first.weight is before
    assert model.second.weight is before
    assert before.dtype == torch.float32
    assert before.grad is not None


def test_low_precision_weights_are_left_alone() -> None:
    model = nn.Linear(2, 2).bfloat16()
    before = model.weight
    with cast_parameters(model, torch.float16):
        assert model.weight is before


def test_which_precision_a_rollout_runs_in() -> None:
    model = nn.Linear(2, 2)
    assert rollout_dtype(model, None) is None
    assert rollout_dtype(model, torch.bfloat16) == torch.bfloat16
    assert rollout_dtype(model, torch.float32) is None  # nothing to cast
    with torch.autocast("cpu", torch.bfloat16):
        assert rollout_dtype(model, None) == torch.bfloat16
        assert rollout_dtype(nn.Linear(2, 2).bfloat16(), None) is None
    with torch.autocast("cpu", torch.float16):
        assert rollout_dtype(model, None) is None
    model.is_quantized = True
    assert rollout_dtype(model, torch.bfloat16) is None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_training_inside_the_same_autocast_still_gets_gradients(dtype: torch.dtype | None) -> None:
    # Autocast caches casts of weights; one made without gradients must not serve the backward.
    model, inputs = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with rollout_mode(model, dtype=dtype, steps=1):
            model(inputs.to(model.weight.dtype))
        model(inputs).sum().backward()
    assert model.weight.grad is not None
