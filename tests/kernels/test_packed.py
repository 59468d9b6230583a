from __future__ import annotations

import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from moodpo.kernels.lora import fuse_lora
from moodpo.kernels.packed import grouped_attention, packed_linears

VARIABLE = "TRANSFORMERS_SDPA_FORCE_GQA"
TYPES = [torch.float32]
if torch.ops.mkldnn._is_mkldnn_bf16_supported():
    TYPES.append(torch.bfloat16)


class Doubled(nn.Linear):
    """A subclass with a forward of its own, which packing must leave alone."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 64), (32, 1, 64), (7, 64), (300, 1, 64), (0, 1, 64)])
@torch.no_grad()
def test_packed_layers_compute_the_same(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias).to(dtype)
    inputs = torch.randn(shape, generator=generator).to(dtype)
    expected = layer(inputs)
    with packed_linears(layer, steps=1000):
        assert "forward" in layer.__dict__
        torch.testing.assert_close(layer(inputs), expected)
        assert layer(inputs).shape == expected.shape
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_adapters_are_packed_with_their_layers(dtype: torch.dtype, bias: bool, fused: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48, bias=bias), nn.Linear(48, 8))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["0"])).to(dtype).eval()
    if fused:
        fuse_lora(adapted)
    layer = adapted.base_model.model[0]
    layer.lora_B["default"].weight.normal_()
    own = layer.__dict__.get("forward")
    few, many = torch.randn(7, 1, 64).to(dtype), torch.randn(300, 1, 64).to(dtype)
    expected = adapted(few), adapted(many)
    with packed_linears(adapted, steps=1000):
        assert layer.__dict__["forward"] is not own
        assert "forward" not in layer.base_layer.__dict__  # packed once, not twice
        for inputs, outputs in zip((few, many), expected, strict=True):
            error = (adapted(inputs) - outputs).norm() / outputs.norm()
            assert error < (1e-5 if dtype == torch.float32 else 1e-2)
    assert layer.__dict__.get("forward") is own
    with adapted.disable_adapter(), packed_linears(adapted, steps=1000):
        assert layer.__dict__.get("forward") is own
        assert "forward" in layer.base_layer.__dict__


@torch.no_grad()
def test_inputs_of_another_type_take_the_plain_way() -> None:
    layer = nn.Linear(8, 8)
    with packed_linears(layer, steps=1000), pytest.raises(RuntimeError, match="dtype"):
        layer(torch.ones(1, 8, dtype=torch.bfloat16))


def test_packing_leaves_others_alone() -> None:
    own = nn.Linear(8, 8)
    replaced = own.forward = lambda inputs: inputs  # type: ignore[method-assign]
    model = nn.Sequential(Doubled(8, 8), own, nn.Linear(8, 8).half(), nn.Linear(8, 8))
    with packed_linears(model, steps=1000):
        assert ["forward" in module.__dict__ for module in model] == [False, True, False, True]
        assert own.forward is replaced
    assert own.forward is replaced
    assert "forward" not in model[3].__dict__


def test_few_steps_and_autocast_are_not_worth_packing() -> None:
    layer = nn.Linear(8, 8)
    with packed_linears(layer, steps=2):
        assert "forward" not in layer.__dict__
    with torch.autocast("cpu", torch.bfloat16), packed_linears(layer, steps=1000):
        assert "forward" not in layer.__dict__


@pytest.mark.parametrize("before", [None, "0"])
def test_grouped_heads_are_asked_for_and_forgotten(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    with grouped_attention(nn.Linear(2, 2).bfloat16()):
        assert os.environ[VARIABLE] == "1"
    assert os.environ.get(VARIABLE) == before
    with grouped_attention(nn.Linear(2, 2)):
        assert os.environ.get(VARIABLE) == before
