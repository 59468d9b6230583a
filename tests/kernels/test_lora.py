import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from moodpo.kernels.lora import drops, fuse_lora, lora_linear, plain_adapter
from tiny_policies import tiny_model

IDS = torch.arange(12).view(2, 6)


def make(*, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **settings)
    model = get_peft_model(tiny_model().to(dtype), lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:  # zero at the start: nothing would be tested
                p.copy_(0.1 * torch.sin(torch.arange(p.numel()).float()).view_as(p))
    return model


def value_and_gradients(model):
    model.zero_grad()
    logits = model(input_ids=IDS).logits.float()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return logits.detach(), gradients


def spy_on(monkeypatch):
    import moodpo.kernels.lora as module

    calls = []
    monkeypatch.setattr(module, "lora_linear", lambda *a: calls.append(1) or lora_linear(*a))
    return calls


def test_fused_equals_peft_in_value_and_gradient(monkeypatch):
    expected, expected_gradients = value_and_gradients(make())
    model = make()
    assert fuse_lora(model) == 14  # seven linear layers in each of two blocks
    calls = spy_on(monkeypatch)
    actual, gradients = value_and_gradients(model)
    assert len(calls) == 14
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in expected_gradients.items():
        error = (gradients[name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, name


def test_without_gradients_the_base_layer_itself_is_asked():
    model, plain = make(), make()
    fuse_lora(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    asked, forward = [], layer.forward
    layer.forward = lambda x: asked.append(1) or forward(x)
    with torch.no_grad():
        actual, expected = model(input_ids=IDS).logits, plain(input_ids=IDS).logits
    assert asked == [1]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_low_precision_is_as_close_to_the_truth_as_peft_is():
    truth, _ = value_and_gradients(make())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        peft, peft_gradients = value_and_gradients(make(dtype=torch.bfloat16))
        model = make(dtype=torch.bfloat16)
        fuse_lora(model)
        fused, gradients = value_and_gradients(model)
    assert (fused - truth).norm() < 1.2 * (peft - truth).norm()
    for name, gradient in peft_gradients.items():
        assert gradients[name].dtype == gradient.dtype == torch.float32
        assert (gradients[name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_dropout_is_that_of_peft(monkeypatch):
    peft, fused = (make(lora_dropout=0.5).train() for _ in range(2))
    fuse_lora(fused)
    calls = spy_on(monkeypatch)
    torch.manual_seed(1)
    expected, expected_gradients = value_and_gradients(peft)
    torch.manual_seed(1)
    actual, gradients = value_and_gradients(fused)
    assert len(calls) == 14
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).norm() < 1e-5 * gradient.norm(), name
    calls.clear()
    value_and_gradients(fused.eval())
    assert len(calls) == 14
    with torch.no_grad():  # where nothing is dropped
        torch.testing.assert_close(fused(input_ids=IDS).logits, peft.eval()(input_ids=IDS).logits)


def test_layers_that_do_more_keep_their_own_forward(monkeypatch):
    model = make(use_dora=True).train()
    fuse_lora(model)
    calls = spy_on(monkeypatch)
    value_and_gradients(model)
    assert calls == []


def test_disabled_and_merged_adapters_are_respected():
    model, plain = make().eval(), make().eval()
    fuse_lora(model)
    with torch.no_grad(), model.disable_adapter(), plain.disable_adapter():
        off = plain(input_ids=IDS).logits
        assert torch.equal(model(input_ids=IDS).logits, off)
    with torch.no_grad():
        on = plain(input_ids=IDS).logits
        model.merge_adapter()
        merged = model(input_ids=IDS).logits
    torch.testing.assert_close(merged, on, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(on, off, atol=1e-3)


def test_models_without_an_adapter_are_left_alone():
    model = tiny_model()
    assert fuse_lora(model) == 0
    assert all("forward" not in m.__dict__ for m in model.modules() if isinstance(m, nn.Linear))


# --- the product, and who has a plain one ---


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
