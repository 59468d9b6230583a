from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moodpo.errors import GenerationError
from moodpo.generation.sampling import (
    _nucleus_threshold,
    forbid_tokens,
    sample_tokens,
    uniforms,
)

MASK = 2**64 - 1
INCREMENT = 0x9E3779B97F4A7C15


def splitmix(bits: int) -> int:
    """The published finalizer in Python integers."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def plain_uniform(seed: int, completion: int, token: int) -> float:
    """The same stream, one number at a time."""
    stream = splitmix((splitmix((seed + INCREMENT) & MASK) + (completion + 1) * INCREMENT) & MASK)
    return (splitmix((stream + (token + 1) * INCREMENT) & MASK) >> 11) / 2**53


def kept_by_full_sort(
    logits: list[float], temperature: float, top_p: float, top_k: int
) -> set[int]:
    """The tokens that may be drawn, by sorting everything in Python."""
    peak = max(logits)
    mass = np.exp(np.float32([(x - peak) / temperature for x in logits])).tolist()
    order = sorted(range(len(mass)), key=lambda i: -mass[i])
    if top_k:
        worst = mass[order[min(top_k, len(order)) - 1]]
        order = [i for i in order if mass[i] >= worst]
    total, running, worst = sum(mass[i] for i in order), 0.0, 0.0
    for place, token in enumerate(order):
        running += mass[token]
        if top_p < 1 and running >= top_p * total:
            worst = mass[order[place]]
            break
    return {i for i in order if mass[i] >= worst and mass[i] > 0}


def draw_everywhere(logits: Tensor, count: int, **sampling: float) -> Tensor:
    """Tokens of one row of logits at `count` evenly spaced uniforms."""
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return sample_tokens(logits.expand(count, -1), draws, **sampling)  # type: ignore[arg-type]


# ---- uniforms ----


def test_splitmix_reference_value() -> None:
    # The first outputs of splitmix64 seeded with 1234567, as in its reference implementation.
    assert splitmix((1234567 + INCREMENT) & MASK) == 6457827717110365317
    assert splitmix((1234567 + 2 * INCREMENT) & MASK) == 3203168211198807973


@settings(max_examples=50)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.integers(1, 4))
def test_uniforms_are_the_keyed_stream(seeds: list[int], count: int) -> None:
    drawn = uniforms(seeds, num_completions=count, num_tokens=3)
    assert drawn.dtype == torch.float64
    assert drawn.shape == (len(seeds), count, 3)
    for i, seed in enumerate(seeds):
        for j in range(count):
            for t in range(3):
                assert drawn[i, j, t].item() == plain_uniform(seed % 2**64, j, t)
    assert (drawn >= 0).all()
    assert (drawn < 1).all()


def test_uniforms_of_a_prompt_do_not_depend_on_the_request() -> None:
    alone = uniforms([7], num_completions=1, num_tokens=2)
    among = uniforms([3, 7, 9], num_completions=4, num_tokens=20)
    assert torch.equal(alone[0, 0], among[1, 0, :2])


def test_uniforms_look_uniform_and_independent() -> None:
    drawn = uniforms(range(200), num_completions=2, num_tokens=50)
    counts = torch.histc(drawn.flatten().float(), bins=20, min=0, max=1)
    expected = drawn.numel() / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees, 0.1 %
    centered = (drawn - 0.5) * 12**0.5
    between = (centered[:, :1] * centered[:, 1:], centered[1:] * centered[:-1])
    for products in (*between, centered[..., 1:] * centered[..., :-1]):
        assert abs(products.mean()) < 4 / products.numel() ** 0.5  # four standard errors


def test_no_global_generator_is_touched() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    draws = uniforms([1, 2], num_completions=2, num_tokens=3)[:, 0, 0]
    sample_tokens(torch.randn(2, 9, generator=torch.Generator()), draws, temperature=1.0, top_p=0.9)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


# ---- sample_tokens ----


def test_inverse_cdf_by_hand() -> None:
    # Probabilities 1/2, 3/10, 1/5 in vocabulary order: cumulative 0.5, 0.8, 1.
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(6, 3)
    draws = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(logits, draws, temperature=1.0).tolist() == [0, 0, 1, 1, 2, 2]


def test_temperature_by_hand() -> None:
    # Temperature 1/2 squares the probabilities: 0.8 and 0.2 become 16/17 = 0.941 and 1/17.
    logits = torch.tensor([0.8, 0.2]).log().expand(2, 2)
    draws = torch.tensor([0.94, 0.942], dtype=torch.float64)
    assert sample_tokens(logits, draws, temperature=0.5).tolist() == [0, 1]


def test_top_p_by_hand() -> None:
    # The nucleus of 0.6 is {0.5, 0.3}; their sum is 0.8, so the border lies at 0.5 / 0.8 = 0.625.
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(4, 3)
    draws = torch.tensor([0.0, 0.62, 0.63, 0.999], dtype=torch.float64)
    assert sample_tokens(logits, draws, temperature=1.0, top_p=0.6).tolist() == [1, 1, 2, 2]


def test_top_p_reached_exactly_keeps_no_more() -> None:
    # The likeliest token alone has mass 1/2 exactly.
    logits = torch.tensor([0.0, 1.0, 0.0]).mul(np.log(2.0))
    assert set(draw_everywhere(logits, 50, temperature=1.0, top_p=0.5).tolist()) == {1}


def test_top_k_comes_before_top_p() -> None:
    # Top-k leaves 0.4 and 0.3, renormalized to 0.571 and 0.429; 0.5 is then one token, while
    # top-p alone would have needed both.
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    both = draw_everywhere(logits, 50, temperature=1.0, top_p=0.5, top_k=2)
    assert set(both.tolist()) == {1}
    assert set(draw_everywhere(logits, 50, temperature=1.0, top_p=0.5).tolist()) == {1, 2}


def test_ties_with_the_last_token_kept_are_kept() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert set(draw_everywhere(logits, 99, temperature=1.0, top_k=2).tolist()) == {0, 1, 2}


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, -1.0, 2.0]])
    draws = torch.tensor([0.9, 0.9], dtype=torch.float64)
    assert sample_tokens(logits, draws, temperature=0.0).tolist() == [1, 0]


@pytest.mark.parametrize("vocabulary", [2, 255, 256, 257, 1000, 5003])
def test_large_vocabularies_agree_with_a_plain_cumulative_sum(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(64, vocabulary, generator=generator) * 3
    draws = torch.rand(64, generator=generator, dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    expected = (cumulative <= draws[:, None]).sum(-1)
    assert torch.equal(sample_tokens(logits, draws, temperature=1.0), expected)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=16), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(0, 45),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.floats(0, 1, exclude_max=True),
)
def test_draws_stay_in_the_support_of_a_full_sort(
    values: list[float], top_p: float, top_k: int, temperature: float, draw: float
) -> None:
    # Float32 sums may end the nucleus one token away from where exact sums would.
    allowed = [
        kept_by_full_sort(values, temperature, min(1.0, top_p * (1 + slack)), top_k)
        for slack in (-1e-6, 0.0, 1e-6)
    ]
    draws = torch.tensor([draw, 0.0, 1 - 2**-53], dtype=torch.float64)
    tokens = sample_tokens(
        torch.tensor(values).expand(3, -1), draws, temperature=temperature, top_p=top_p, top_k=top_k
    )
    # The extremes of the uniform reach the first and the last token kept.
    assert any(
        set(tokens.tolist()) <= kept and tokens[1:].tolist() == [min(kept), max(kept)]
        for kept in allowed
    )


@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_exact_however_many_tokens_it_needs(spread: float, top_p: float) -> None:
    # 0.3 needs nearly the whole vocabulary, 4.0 a few tokens: the candidates grow for some rows.
    noise = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([[spread], [0.3], [8.0]])
    mass = (noise * scales + torch.arange(3000) * 1e-5).softmax(-1)
    kept = mass >= _nucleus_threshold(mass, top_p)
    for row in range(3):
        expected = kept_by_full_sort(mass[row].log().tolist(), 1.0, top_p, 0)
        assert set(kept[row].nonzero().flatten().tolist()) == expected


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.1, -1.0, 2.0, 0.0, 1.0, -2.0])
    draws = uniforms(range(5000), num_completions=1, num_tokens=4).flatten()
    tokens = sample_tokens(logits.expand(len(draws), -1), draws, temperature=0.8)
    expected = (logits / 0.8).softmax(-1) * len(draws)
    counts = tokens.bincount(minlength=6)
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # chi-square, 5 degrees, 0.1 %


def test_low_precision_logits_are_sampled_in_float32() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(1)).bfloat16()
    draws = torch.linspace(0, 0.999, 8, dtype=torch.float64)
    assert torch.equal(
        sample_tokens(logits, draws, temperature=0.7, top_p=0.9),
        sample_tokens(logits.float(), draws, temperature=0.7, top_p=0.9),
    )


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    assert set(draw_everywhere(logits, 31, temperature=1.0).tolist()) == {1, 3}
    drawn = sample_tokens(logits[None], torch.tensor([1.0], dtype=torch.float64), temperature=1.0)
    assert drawn.item() == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf]])
def test_logits_that_are_not_finite_are_refused(bad: list[float], temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0], bad])
    with pytest.raises(GenerationError, match="NaN or infinity"):
        sample_tokens(logits, torch.zeros(2, dtype=torch.float64), temperature=temperature)


def test_inputs_are_not_changed() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator())
    draws = torch.zeros(3, dtype=torch.float64)
    copy = logits.clone()
    forbid_tokens(logits, torch.tensor([1]), torch.ones(3, dtype=torch.bool))
    sample_tokens(logits, draws, temperature=0.5, top_p=0.5, top_k=3)
    assert torch.equal(logits, copy)


# ---- forbid_tokens ----


def test_tokens_are_forbidden_in_marked_rows_alone() -> None:
    logits = torch.arange(6.0).reshape(2, 3)
    masked = forbid_tokens(logits, torch.tensor([0, 2]), torch.tensor([True, False]))
    assert masked.tolist() == [[-torch.inf, 1.0, -torch.inf], [3.0, 4.0, 5.0]]


def test_tokens_are_forbidden_everywhere() -> None:
    logits = torch.arange(6.0).reshape(2, 3)
    masked = forbid_tokens(logits, torch.tensor([1]))
    assert masked.tolist() == [[0.0, -torch.inf, 2.0], [3.0, -torch.inf, 5.0]]


def test_forbidding_nothing_changes_nothing() -> None:
    logits = torch.arange(6.0).reshape(2, 3)
    none = torch.tensor([], dtype=torch.long)
    assert torch.equal(forbid_tokens(logits, none, torch.tensor([True, True])), logits)
