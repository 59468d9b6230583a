"""Pairs of every architecture, as training scores them, against one plain pass per completion."""

import pytest
import torch

from moodpo.errors import GenerationError
from moodpo.generation.base import SamplingConfig
from moodpo.generation.hf import HFGenerator
from moodpo.models.logps import completion_logps
from moodpo.training.paths import find_fast_paths
from tiny_architectures import ARCHITECTURES, build

# Longer than every window, alone and together, and unlike in length: padding is on the way.
PROMPTS = [tuple(range(3, 15)), (20, 21, 22)]
PAIRS = [
    ((30, 31, 32, 33, 34, 35), (40, 41, 42)),
    ((50, 51, 52, 53, 54, 55, 56), (57, 58, 59, 60, 3, 4, 5, 6, 7, 8)),
]
# What a pair's loss multiplies log-probabilities with: chosen up, rejected down, unevenly.
COEFFICIENTS = torch.tensor([[0.7, -0.4], [0.2, -0.9]])
FULL_ATTENTION = list(ARCHITECTURES)[: list(ARCHITECTURES).index("mistral_window")]
NOT_SAMPLED = {"mamba", "mamba2", "recurrent_gemma"}  # no key-value cache: refused by rollouts


def plain_logps(model, prompt, completion):
    """The textbook way: one sequence, no mask, no positions, full logits."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)  # [S, V]
    at = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return logps[at, torch.tensor(completion)].sum()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_like_plain(model, paths, prompts=PROMPTS):
    plain = [
        [plain_logps(model, prompt, completion) for completion in pair]
        for prompt, pair in zip(prompts, PAIRS, strict=True)
    ]
    expected = torch.stack([torch.stack(pair) for pair in plain])  # [P, 2]
    expected_gradients = gradients(model, (expected * COEFFICIENTS).sum())
    scale = max(g.abs().max().item() for g in expected_gradients.values())

    batch = paths.collate(prompts, PAIRS, pad_token_id=0)
    actual = completion_logps(model, batch, linear_head=paths.linear_head).logps.view(-1, 2)
    torch.testing.assert_close(actual.detach(), expected.detach(), atol=1e-4, rtol=0)
    actual_gradients = gradients(model, (actual * COEFFICIENTS).sum())
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        error = (actual_gradients[name] - gradient).abs().max().item()
        assert error <= 1e-4 * max(scale, 1), name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_is_that_of_a_plain_loop_over_full_logits(name):
    model = build(name)
    paths = find_fast_paths(model)
    assert_like_plain(model, paths)
    # Whoever can be packed is: speed is not given away.
    assert paths.packed == (name in FULL_ATTENTION), paths.reason


# Which settings hold the window of which architecture.
WINDOWED = {
    **dict.fromkeys(
        ("mistral_window", "ministral", "qwen2_window", "phi3_window", "starcoder2_window"),
        "sliding_window",
    ),
    **dict.fromkeys(("gemma2", "gemma3", "gemma4", "gpt_oss", "olmo3"), "sliding_window"),
    **dict.fromkeys(("exaone4", "cohere2"), "sliding_window"),
    "llama4": "attention_chunk_size",
}


@pytest.mark.parametrize("name", WINDOWED)
def test_what_fits_into_a_window_is_packed_and_what_does_not_is_not(name):
    window = 24
    model = build(name, **{WINDOWED[name]: window})
    paths = find_fast_paths(model)
    assert (paths.packed, paths.window) == (True, window)
    assert f"up to {window} tokens" in paths.describe()
    # The longest sequence of the second pair is exactly as long as the window, or one longer;
    # that row of both completions is longer than the window in any case.
    for extra in (0, 1):
        prompts = [PROMPTS[0], (20,) * (window - len(PAIRS[1][1]) + extra)]
        batch = paths.collate(prompts, PAIRS, pad_token_id=0)
        assert len(batch.input_ids) == (4 if extra else 2)
        assert_like_plain(model, paths, prompts)


@pytest.mark.parametrize("name", sorted(NOT_SAMPLED))
def test_who_cannot_be_sampled_is_refused_before_training(name):
    generator = HFGenerator(build(name), eos_token_ids=[2], pad_token_id=0)
    with pytest.raises(GenerationError):
        generator.generate(
            PROMPTS, sampling=SamplingConfig(max_new_tokens=4), num_completions=2, seeds=range(4)
        )
