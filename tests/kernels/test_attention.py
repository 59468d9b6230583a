import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from moodpo.core.tokens import collate_pairs
from moodpo.kernels import attention as module
from moodpo.kernels.attention import masked_attention, use_pair_attention
from moodpo.models.logps import completion_logps
from tiny_policies import tiny_model

PROMPTS = [(1, 2, 3), (4, 5, 6, 7)]
PAIRS = [((9, 10), (11, 12, 13)), ((14, 3), (15, 16))]


def inputs(dtype=torch.float64, *, batch=2, heads=4, groups=2, length=5, width=3, value_width=3):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, heads, length, width, generator=generator, dtype=dtype)
    key, value = (
        torch.randn(batch, heads // groups, length, size, generator=generator, dtype=dtype)
        for size in (width, value_width)
    )
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1).expand(batch, 1, -1, -1).clone()
    hidden[1, :, 3:, 1] = True  # a block mask is not only causal
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    return query, key, value, mask


def test_by_hand():
    # One head, two positions: the second sees scores ln 3 and 0, so weights 3/4 and 1/4.
    query = torch.tensor([[[[0.0], [1.0]]]])
    key = torch.tensor([[[[3.0], [1.0]]]]).log()
    value = torch.tensor([[[[4.0], [8.0]]]])
    mask = torch.tensor([[[[0.0, -torch.inf], [0.0, 0.0]]]])
    output = masked_attention(query, key, value, mask, 1.0)
    torch.testing.assert_close(output, torch.tensor([[[[4.0], [5.0]]]]))


@pytest.mark.parametrize("value_width", [3, 2, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_torch(groups, value_width):
    query, key, value, mask = inputs(torch.float32, groups=groups, value_width=value_width)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(masked_attention(query, key, value, mask, 3**-0.5), expected)


@pytest.mark.parametrize("value_width", [3, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_are_those_of_finite_differences(monkeypatch, groups, value_width):
    query, key, value, mask = inputs(groups=groups, value_width=value_width)
    # The softmax is made in float32; finite differences need more.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self.clone())
    tensors = [t.requires_grad_() for t in (query, key, value)]
    assert torch.autograd.gradcheck(lambda q, k, v: masked_attention(q, k, v, mask, 0.7), tensors)


def test_keeps_nothing_of_the_size_of_the_scores():
    query, key, value, mask = inputs(torch.bfloat16, length=50)
    query.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        masked_attention(query, key, value, mask, 1.0)
    own = [t for t in saved if t.data_ptr() != mask.data_ptr()]
    assert max(t.numel() for t in own) == query.numel()


def policy(dtype):
    model = tiny_model().to(dtype)
    model.set_attn_implementation("sdpa")
    return model.train()


def logps_and_gradients(model):
    model.zero_grad()
    batch = collate_pairs(PROMPTS, PAIRS, pad_token_id=0)
    logps = completion_logps(model, batch, linear_head=True).logps
    (logps * torch.tensor([1.0, -1.0, 0.5, -2.0])).sum().backward()
    gradients = torch.cat([p.grad.flatten().float() for p in model.parameters()])
    return logps.detach(), gradients


def test_a_model_trains_through_it_as_through_torch(monkeypatch):
    expected, expected_gradients = logps_and_gradients(policy(torch.bfloat16))
    model, calls = policy(torch.bfloat16), []
    original = module.masked_attention
    monkeypatch.setattr(
        module, "masked_attention", lambda *args: calls.append(1) or original(*args)
    )
    assert use_pair_attention(model)
    logps, gradients = logps_and_gradients(model)
    assert len(calls) == model.config.num_hidden_layers
    torch.testing.assert_close(logps, expected, atol=2e-2, rtol=2e-2)
    assert torch.nn.functional.cosine_similarity(gradients, expected_gradients, dim=0) > 0.999
    with torch.no_grad():  # torch's kernel is the faster one without a backward pass
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert len(calls) == model.config.num_hidden_layers


def test_float32_stays_with_torch(monkeypatch):
    monkeypatch.delattr(module, "masked_attention")
    model = policy(torch.float32)
    expected, expected_gradients = logps_and_gradients(model)
    assert use_pair_attention(model)
    logps, gradients = logps_and_gradients(model)
    assert torch.equal(logps, expected)
    assert torch.equal(gradients, expected_gradients)


def test_another_choice_of_attention_is_respected():
    model = tiny_model()
    model.set_attn_implementation("eager")
    assert not use_pair_attention(model)
    assert model.config._attn_implementation == "eager"
    assert not use_pair_attention(torch.nn.Linear(2, 2))
