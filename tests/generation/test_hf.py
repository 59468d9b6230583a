from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from moodpo.errors import ConfigError, GenerationError
from moodpo.generation import Completion, HFGenerator, SamplingConfig
from tiny_policies import tiny_tokenizer

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
LENGTHS = (5, 12, 3, 12, 9, 20, 7, 1, 15, 12)
ENDS = (5, 9, 17, 30, 31, 32, 33, 48)

Maker = Callable[[], nn.Module]


def make_llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


def make_gpt2(**changes: Any) -> GPT2LMHeadModel:
    tiny = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**{**tiny, "eos_token_id": None, **changes}))


def make_qwen2() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def make_gemma3() -> Gemma3ForCausalLM:
    """Sliding windows shorter than the prompts in most layers: a cache that cannot grow."""
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=6))


def make_bfloat16_llama() -> LlamaForCausalLM:
    """Weights in bfloat16, rotary frequencies in float32: as `from_pretrained` loads it."""
    model = sharp(make_llama)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model  # type: ignore[no-any-return]


def make_minimax() -> MiniMaxForCausalLM:
    """A cache class of its own, whose rows cannot be repeated after the prefill."""
    changes = {
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    }
    return MiniMaxForCausalLM(MiniMaxConfig(**{**SHAPE, **changes}))


def sharp(make: Callable[[], Any], seed: int = 0) -> Any:
    """A random model whose distributions are far from uniform, in evaluation mode."""
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    torch.set_rng_state(state)
    return model


def make_prompts(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(1, VOCABULARY) for _ in range(n)) for n in lengths]


def sample(
    model: nn.Module,
    prompts: Sequence[tuple[int, ...]],
    *,
    count: int = 2,
    seeds: Sequence[int] | None = None,
    ends: Sequence[int] = (),
    batch_size: int = 64,
    **sampling: Any,
) -> list[tuple[Completion, ...]]:
    generator = HFGenerator(
        model, eos_token_ids=ends, pad_token_id=0, generation_batch_size=batch_size
    )
    return generator.generate(
        prompts,
        sampling=SamplingConfig(**{"max_new_tokens": 12, **sampling}),
        num_completions=count,
        seeds=range(len(prompts)) if seeds is None else seeds,
    )


def transformers_greedy(
    model: nn.Module, prompts: Sequence[tuple[int, ...]], ends: Sequence[int], tokens: int = 12
) -> list[Completion]:
    """`generate` on one left-padded batch, its padding after the end removed."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    rows = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
    )[:, width:].tolist()
    completions = []
    for row in rows:
        length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
        completions.append(Completion(tuple(row[:length]), length is not None))
    return completions


class Spy:
    """Records the shapes of token ids that reach the embeddings."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.handle = model.get_input_embeddings().register_forward_pre_hook(self._record)

    def _record(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        self.shapes.append(tuple(inputs[0].shape))


# ---- Agreement with transformers ----


@pytest.mark.parametrize("ends", [(), ENDS])
@pytest.mark.parametrize("batch_size", [64, 4])
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_qwen2, make_gemma3])
def test_greedy_tokens_are_those_of_transformers(
    make: Maker, batch_size: int, ends: tuple[int, ...]
) -> None:
    model, prompts = sharp(make, seed=1), make_prompts()
    expected = transformers_greedy(model, prompts, ends)
    rows = sample(model, prompts, ends=ends, batch_size=batch_size, temperature=0.0)
    assert rows == [(completion, completion) for completion in expected]
    if ends:  # the case is worth something only if completions end at different times
        assert len({len(completion.token_ids) for completion in expected}) > 2


@pytest.mark.parametrize("ends", [(), ENDS])
def test_a_cache_that_cannot_be_repeated_is_read_per_completion(ends: tuple[int, ...]) -> None:
    model, prompts = sharp(make_minimax), make_prompts()
    rows = sample(model, prompts, ends=ends, temperature=0.0)
    assert rows == [(c, c) for c in transformers_greedy(model, prompts, ends)]


def test_long_completions_grow_the_cache() -> None:
    model = sharp(lambda: make_llama(max_position_embeddings=1024))
    prompts = make_prompts((3, 30))
    expected = transformers_greedy(model, prompts, (), tokens=400)
    rows = sample(model, prompts, count=1, temperature=0.0, max_new_tokens=400)
    assert [row[0] for row in rows] == expected


def test_use_cache_off_in_the_config_is_overruled() -> None:
    model, prompts = sharp(make_llama), make_prompts()
    expected = transformers_greedy(model, prompts, ())
    model.config.use_cache = False
    spy = Spy(model)
    assert [row[0] for row in sample(model, prompts, temperature=0.0)] == expected
    assert [shape[1] for shape in spy.shapes[1:]] == [1] * (len(spy.shapes) - 1)


def test_adapters_are_part_of_the_policy() -> None:
    from peft import LoraConfig, get_peft_model

    base, prompts = sharp(make_llama), make_prompts()
    plain = sample(base, prompts, temperature=0.0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    rows = sample(model, prompts, temperature=0.0)
    assert [row[0] for row in rows] == transformers_greedy(model, prompts, ())
    assert rows != plain


# ---- Sampling ----


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_samples_follow_the_models_distribution(make: Callable[..., nn.Module]) -> None:
    model = sharp(lambda: make(vocab_size=6, pad_token_id=None, bos_token_id=None))
    # Two prompts of unequal length share the batch, so half of the rows are padded.
    prompts = [(1, 2, 3), (4, 1)] * 2000
    rows = sample(model, prompts, batch_size=8192, max_new_tokens=2, temperature=1.3)
    first, second = 6 * [0], 36 * [0]
    for row in rows[1::2]:
        for completion in row:
            a, b = completion.token_ids
            first[a] += 1
            second[6 * a + b] += 1

    with torch.no_grad():
        after = [model(torch.tensor([[4, 1, a]])).logits[0, -2:] / 1.3 for a in range(6)]
    start = after[0][0].softmax(-1)
    joint = torch.stack([start[a] * after[a][1].softmax(-1) for a in range(6)]).flatten()
    assert chi_square(torch.tensor(first), start) < 20.5  # 5 degrees of freedom, 0.1 %
    assert joint.min() * 4000 > 5  # what the chi-square approximation asks for
    assert chi_square(torch.tensor(second), joint) < 66.6  # 35 degrees of freedom, 0.1 %


@pytest.mark.parametrize("make", [make_llama, make_gemma3])
def test_completions_do_not_depend_on_the_batch(make: Maker) -> None:
    model, prompts = sharp(make), make_prompts()
    settings = {"ends": ENDS, "top_p": 0.95, "temperature": 0.8}
    together = sample(model, prompts, **settings)
    for batch_size in (1, 2, 7):
        assert sample(model, prompts, batch_size=batch_size, **settings) == together
    order = [3, 9, 0, 5, 1, 8, 2, 7, 4, 6]
    shuffled = sample(model, [prompts[i] for i in order], seeds=order, **settings)
    assert shuffled == [together[i] for i in order]
    alone = [sample(model, [prompts[i]], seeds=[i], **settings)[0] for i in (0, 5, 7)]
    assert alone == [together[i] for i in (0, 5, 7)]


def test_seeds_decide_and_completions_differ() -> None:
    model, prompts = sharp(make_llama), make_prompts()
    rows = sample(model, prompts)
    assert rows == sample(model, prompts)
    assert all(first != second for first, second in rows)
    other = sample(model, prompts, seeds=range(100, 110))
    assert all(a != b for a, b in zip(rows, other, strict=True))
    # The same prompt under two seeds, and more completions of one: only appended.
    assert len({c for row in sample(model, [prompts[0]] * 3) for c in row}) == 6
    more = sample(model, prompts, count=5)
    assert [row[:2] for row in more] == rows


def test_shorter_limits_cut_the_same_completions() -> None:
    model, prompts = sharp(make_llama), make_prompts()
    long, short = sample(model, prompts, max_new_tokens=9), sample(model, prompts, max_new_tokens=4)
    assert [[c.token_ids[:4] for c in row] for row in long] == [
        [c.token_ids for c in row] for row in short
    ]


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    sample(sharp(make_llama), make_prompts())
    assert torch.equal(before, torch.get_rng_state())


# ---- Where completions end ----


def test_every_end_token_ends_and_is_kept() -> None:
    rows = sample(sharp(make_llama), make_prompts(), ends=ENDS, max_new_tokens=20, temperature=2.0)
    completions = [completion for row in rows for completion in row]
    assert {c.finished for c in completions} == {True, False}
    assert len({c.token_ids[-1] for c in completions if c.finished}) > 2
    for completion in completions:
        assert not set(completion.token_ids[:-1]) & set(ENDS)
        assert completion.finished == (completion.token_ids[-1] in ENDS)
        assert completion.finished or len(completion.token_ids) == 20


def test_no_end_before_the_shortest_length() -> None:
    model, prompts = sharp(make_llama), make_prompts()
    settings = {"ends": ENDS, "temperature": 2.0, "max_new_tokens": 20}
    free = [c for row in sample(model, prompts, **settings) for c in row]
    assert min(len(c.token_ids) for c in free) < 4
    rows = sample(model, prompts, batch_size=4, min_new_tokens=5, **settings)
    held = [c for row in rows for c in row]
    assert min(len(c.token_ids) for c in held) == 6
    assert all(not set(c.token_ids[:5]) & set(ENDS) for c in held)


def test_one_token_needs_no_decoding_step() -> None:
    model = sharp(make_llama)
    spy = Spy(model)
    rows = sample(model, make_prompts((4, 4, 4)), max_new_tokens=1)
    assert all(len(c.token_ids) == 1 and not c.finished for row in rows for c in row)
    assert spy.shapes == [(3, 4)]


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_completions_stop_where_the_context_is_full(make: Callable[..., nn.Module]) -> None:
    size = {"n_positions": 16} if make is make_gpt2 else {"max_position_embeddings": 16}
    model = sharp(lambda: make(**size))
    rows = sample(model, make_prompts((15, 10, 2)), max_new_tokens=12)
    assert [[len(c.token_ids) for c in row] for row in rows] == [[1, 1], [6, 6], [12, 12]]
    assert not any(c.finished for row in rows for c in row)
    # A single ended row among many stays in the batch for a while: it must not leave the context.
    rows = sample(model, make_prompts((14, *[2] * 12)), count=1, max_new_tokens=12)
    assert [len(row[0].token_ids) for row in rows] == [2, *[12] * 12]


def test_what_rows_draw_after_their_end_counts_for_nothing() -> None:
    # Sixteen rows end at the context's limit, too few to be dropped at once; what they go on to
    # draw is the end token now and then.
    model = sharp(lambda: make_llama(max_position_embeddings=16))
    prompts, unfinished = make_prompts([14] * 16 + [2] * 240), 0
    settings = {"count": 1, "ends": [5], "batch_size": 256, "temperature": 3.0}
    for start in range(0, 4000, 400):
        rows = sample(model, prompts, seeds=range(start, start + 256), **settings)
        for (completion,) in rows[:16]:
            assert completion.finished == (completion.token_ids[-1] == 5)
            unfinished += not completion.finished
    assert unfinished > 120


def test_no_prompts_no_completions() -> None:
    assert sample(sharp(make_llama), []) == []


# ---- What makes it fast ----


def test_completions_share_one_prefill_and_end_the_batch_early() -> None:
    model = sharp(make_llama)
    spy = Spy(model)
    sample(model, make_prompts((8, 8, 8)), count=4, max_new_tokens=5)
    assert spy.shapes == [(3, 8), *[(12, 1)] * 4]


def test_ended_rows_leave_and_waiting_prompts_take_their_places() -> None:
    model, prompts = sharp(make_llama), make_prompts([6] * 24)
    settings = {"ends": ENDS, "max_new_tokens": 30, "temperature": 2.0}
    spy, columns = Spy(model), []

    def note_columns(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs["past_key_values"]
        columns.append(0 if cache is None else cache.get_seq_length())

    handle = model.register_forward_pre_hook(note_columns, with_kwargs=True)
    rows = sample(model, prompts, batch_size=8, **settings)
    spy.handle.remove()
    handle.remove()
    decoding = [shape for shape in spy.shapes if shape[1] == 1]
    tokens = sum(len(c.token_ids) for row in rows for c in row)
    assert max(shape[0] for shape in decoding) == 8
    # Rows that are decoded but already ended are few, and the batch stays nearly full.
    useful = tokens - 2 * len(prompts)  # first tokens come from the prefill
    assert sum(shape[0] for shape in decoding) < 1.15 * useful
    # Columns that no row needs any more are forgotten, or the cache would grow without end.
    assert max(columns) < 6 + 30
    full = [shape for shape in decoding[: len(decoding) // 2] if shape[0] >= 6]
    assert len(full) > 0.9 * (len(decoding) // 2)


def test_gradient_checkpointing_costs_no_cache_and_modes_come_back() -> None:
    model, prompts = sharp(make_llama), make_prompts()
    expected = sample(model, prompts)
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    model.lm_head.eval()
    spy = Spy(model)
    assert sample(model, prompts) == expected
    spy.handle.remove()
    assert sum(shape[1] > 1 for shape in spy.shapes) == 1
    assert model.training
    assert not model.lm_head.training
    assert model.is_activation_checkpointing
    loss = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# ---- Precision ----


def test_bfloat16_autocast_casts_weights_once_and_gives_them_back() -> None:
    model, prompts = sharp(make_llama), make_prompts()
    weights = list(model.parameters())
    seen: set[torch.dtype] = set()
    layer = model.model.layers[0].self_attn.q_proj
    handle = layer.register_forward_hook(lambda module, _, out: seen.add(module.weight.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        rows = sample(model, prompts)
    handle.remove()
    assert seen == {torch.bfloat16}
    assert all(a is b for a, b in zip(weights, model.parameters(), strict=True))
    assert rows == sample(make_bfloat16_llama(), prompts)


def test_a_requested_precision_needs_no_autocast() -> None:
    model, prompts = sharp(make_llama), make_prompts()
    generator = HFGenerator(model, eos_token_ids=(), pad_token_id=0, dtype=torch.bfloat16)
    rows = generator.generate(
        prompts, sampling=SamplingConfig(max_new_tokens=12), num_completions=2, seeds=range(10)
    )
    assert rows == sample(make_bfloat16_llama(), prompts)
    assert model.dtype == torch.float32


# ---- Errors and reports ----


def test_progress_counts_completions_to_the_end() -> None:
    reports: list[tuple[int, int]] = []
    generator = HFGenerator(
        sharp(make_llama),
        eos_token_ids=ENDS,
        pad_token_id=0,
        generation_batch_size=6,
        progress=lambda done, total: reports.append((done, total)),
    )
    generator.generate(
        make_prompts(),
        sampling=SamplingConfig(max_new_tokens=12),
        num_completions=2,
        seeds=range(10),
    )
    assert {total for _, total in reports} == {20}
    done = [count for count, _ in reports]
    assert done == sorted(set(done))
    assert done[-1] == 20
    assert len(done) > 3


def test_broken_weights_are_reported_and_modes_restored() -> None:
    model = sharp(make_llama).train()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(GenerationError, match="NaN"):
        sample(model, make_prompts())
    assert model.training


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ([(1, 2), ()], "prompt 1"),
        ([(1,), (2,) * 64], "Prompt 1 has 64 tokens"),
        ([(1,), (2,), (3, VOCABULARY)], "Prompt 2 holds token 61"),
        ([(1,), (4, -3)], "Prompt 1 holds token -3"),
    ],
)
def test_prompts_that_cannot_be_continued_are_named(
    prompts: list[tuple[int, ...]], named: str
) -> None:
    with pytest.raises(GenerationError, match=named):
        sample(sharp(make_llama), prompts)


def test_models_that_cannot_generate_are_refused() -> None:
    tiny = {"vocab_size": 9, "d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8}
    with pytest.raises(ConfigError, match="encoder-decoder"):
        HFGenerator(T5ForConditionalGeneration(T5Config(**tiny)), eos_token_ids=(), pad_token_id=0)
    with pytest.raises(ConfigError, match="generation_batch_size"):
        HFGenerator(make_llama(), eos_token_ids=(), pad_token_id=0, generation_batch_size=0)
    state_space = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1))
    with pytest.raises(GenerationError, match="past_key_values"):
        sample(state_space, [(1, 2)])


def test_prompt_learning_is_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(sharp(make_llama), config)
    with pytest.raises(ConfigError, match="LoRA"):
        HFGenerator(model, eos_token_ids=(), pad_token_id=0)


# --- whom to ask ---


def asked(generator: HFGenerator, who: Any = "policy") -> list[tuple[Completion, ...]]:
    prompts = [(3, 4, 5), (6, 7)]
    sampling = SamplingConfig(max_new_tokens=5)
    return generator.generate(prompts, sampling=sampling, num_completions=2, seeds=[1, 2], who=who)


def test_a_reference_of_its_own_answers_for_itself() -> None:
    policy, other = sharp(make_llama), sharp(make_gpt2)
    tokenizer = tiny_tokenizer()
    generator = HFGenerator.of(policy, tokenizer, reference=lambda: nullcontext(other))
    assert asked(generator, "reference") == asked(HFGenerator.of(other, tokenizer))
    assert asked(generator) == asked(HFGenerator.of(policy, tokenizer))
    assert asked(generator) != asked(generator, "reference")


def test_a_reference_that_is_the_policy_changed_is_left_as_it_was() -> None:
    model, entered = sharp(make_llama), []

    @contextmanager
    def shifted() -> Iterator[nn.Module]:
        weight = model.lm_head.weight
        with torch.no_grad():
            weight.neg_()
        entered.append(True)
        try:
            yield model
        finally:
            with torch.no_grad():
                weight.neg_()

    generator = HFGenerator.of(model, tiny_tokenizer(), reference=shifted)
    before = asked(generator)
    assert not entered
    assert asked(generator, "reference") != before
    assert entered
    assert asked(generator) == before


def test_who_has_no_reference_says_so() -> None:
    with pytest.raises(GenerationError, match="knows no reference"):
        asked(HFGenerator.of(sharp(make_llama), tiny_tokenizer()), "reference")


def test_in_this_process_there_is_nothing_to_sync_or_close() -> None:
    generator = HFGenerator.of(sharp(make_llama), tiny_tokenizer())
    before = asked(generator)
    generator.sync(3)
    generator.close()
    assert asked(generator) == before
