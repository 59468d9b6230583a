import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from moodpo.core.tokens import TokenBatch, collate_pairs, collate_sequences
from moodpo.models.logps import completion_logps, head_is_linear

VOCABULARY = 61
PROMPTS = [(1, 2, 3), (4, 5, 6, 7, 8), (9,)]
PAIRS = [((9, 10), (11, 12, 13)), ((14,), (15, 16, 17, 18)), ((19, 20, 21), (22, 23))]


def llama(attention="sdpa"):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            attn_implementation=attention,
        )
    ).eval()


def gpt2(attention="sdpa"):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=2,
            initializer_range=0.2,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation=attention,
        )
    ).eval()


def gemma2():
    torch.manual_seed(0)
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.2,
            attn_implementation="eager",
        )
    ).eval()


def biased(attention="sdpa"):
    model = llama(attention)
    head = torch.nn.Linear(32, VOCABULARY)
    head.load_state_dict({"weight": model.lm_head.weight, "bias": torch.randn(VOCABULARY)})
    model.set_output_embeddings(head)
    return model


def plain_logps(model, prompt, completion, temperature=1.0):
    """The textbook way: one sequence at a time, full logits."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)  # [S, V]
    at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    entropies = -(logps.exp() * logps).sum(-1)
    return (
        sum(logps[s, t] for s, t in zip(at, completion, strict=True)),
        sum(entropies[s] for s in at),
    )


def gradients(model, scalar):
    model.zero_grad()
    scalar.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [llama, gpt2, biased])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("linear_head", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_path_equals_the_plain_loop_in_value_and_gradient(
    make, attention, packed, linear_head, temperature
):
    model = make(attention)
    flat = [(p, c) for p, pair in zip(PROMPTS, PAIRS, strict=True) for c in pair]
    plain = [plain_logps(model, p, c, temperature) for p, c in flat]
    expected = torch.stack([logp for logp, _ in plain])
    coefficients = torch.linspace(-1, 1, len(flat))
    expected_gradients = gradients(model, (expected * coefficients).sum())

    if packed:
        batch = collate_pairs(PROMPTS, PAIRS, pad_token_id=0)
    else:
        batch = collate_sequences([p for p, _ in flat], [c for _, c in flat], pad_token_id=0)
    result = completion_logps(model, batch, linear_head=linear_head, temperature=temperature)
    torch.testing.assert_close(result.logps, expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        result.entropies, torch.stack([e for _, e in plain]).detach(), atol=1e-4, rtol=1e-5
    )
    assert result.lengths.tolist() == [len(c) for _, c in flat]
    actual = gradients(model, (result.logps * coefficients).sum())
    for name, gradient in expected_gradients.items():
        error = (actual[name] - gradient).norm() / gradient.norm().clamp_min(1e-6)
        assert error < 1e-5, name


def test_left_padding_with_position_ids_shifts_nothing():
    model = gpt2()
    ids = torch.tensor([[0, 0, 1, 2, 3, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    batch = TokenBatch(
        input_ids=ids,
        predictors=torch.tensor([4, 5]),
        targets=torch.tensor([9, 10]),
        owners=torch.tensor([0, 0]),
        num_completions=1,
        attention_mask=mask,
        position_ids=torch.tensor([[0, 0, 0, 1, 2, 3, 4]]),
    )
    expected, _ = plain_logps(model, (1, 2, 3), (9, 10))
    actual = completion_logps(model, batch, linear_head=True).logps[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_head_is_linear_is_found_out_by_trying():
    assert head_is_linear(llama())
    assert head_is_linear(gpt2())
    assert not head_is_linear(gemma2())  # caps its logits after the head


def test_models_that_cap_their_logits_take_the_plain_path():
    model = gemma2()
    batch = collate_pairs(PROMPTS, PAIRS, pad_token_id=0)
    actual = completion_logps(model, batch, linear_head=head_is_linear(model)).logps
    expected, _ = plain_logps(model, PROMPTS[0], PAIRS[0][0])
    torch.testing.assert_close(actual[0], expected, atol=1e-5, rtol=1e-5)


def test_the_head_is_whole_again_after_use():
    model = llama()
    ids = torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    completion_logps(model, collate_pairs(PROMPTS, PAIRS, pad_token_id=0), linear_head=True)
    assert torch.equal(model(input_ids=ids).logits, before)
