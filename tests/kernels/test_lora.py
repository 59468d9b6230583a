import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from moodpo.kernels.lora import drops, lora_linear, plain_adapter
from tiny_policies import tiny_model


def test_lora_linear_by_hand():
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0]])
    # 3 + 8, a bias of 1, and 0.5 * (1 + 2) * 2
    output = lora_linear(x, weight, torch.tensor([1.0]), a, b, 0.5)
    assert output.tolist() == [[15.0]]


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2))
    x, weight, bias, a, b = (
        torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes
    )
    inputs = [t.requires_grad_() for t in (x, a, b)]
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, bias, a, b, 0.7), inputs)


def test_gradients_through_dropout_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4), (2, 3, 4), (5, 4), (2, 4), (5, 2))
    x, dropped, weight, a, b = (
        torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes
    )
    inputs = [t.requires_grad_() for t in (x, dropped, a, b)]
    assert torch.autograd.gradcheck(
        lambda x, dropped, a, b: lora_linear(x, weight, None, a, b, 0.7, dropped), inputs
    )


def layer(**settings):
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj"], **settings)
    model = get_peft_model(tiny_model(), config)
    return model, model.base_model.model.model.layers[0].self_attn.q_proj


def test_a_plain_adapter_is_its_matrices():
    _, adapted = layer()
    a, b, scaling = plain_adapter(adapted)
    assert a is adapted.lora_A["default"].weight
    assert b is adapted.lora_B["default"].weight
    assert scaling == 3
    assert plain_adapter(adapted.base_layer) is None
    assert plain_adapter(nn.Dropout()) is None


def test_layers_that_do_more_have_no_plain_adapter():
    assert plain_adapter(layer(use_dora=True)[1]) is None
    _, biased = layer()
    biased.lora_B["default"].bias = nn.Parameter(torch.zeros(1))
    assert plain_adapter(biased) is None


def test_disabled_merged_and_trained_layers_have_no_plain_adapter():
    model, adapted = layer()
    with model.disable_adapter():
        assert plain_adapter(adapted) is None
    model.merge_adapter()
    assert plain_adapter(adapted) is None
    model.unmerge_adapter()
    assert plain_adapter(adapted) is not None
    adapted.base_layer.weight.requires_grad_()
    assert plain_adapter(adapted) is None


def test_dropout_drops_in_training_only():
    _, adapted = layer(lora_dropout=0.5)
    assert drops(adapted.train())
    assert not drops(adapted.eval())
    assert not drops(layer()[1].train())
