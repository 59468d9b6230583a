"""Which fast paths are taken, and what is said of them."""

import logging

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from moodpo.core.tokens import collate_pairs
from moodpo.errors import ConfigError
from moodpo.generation.base import SamplingConfig
from moodpo.generation.hf import HFGenerator
from moodpo.kernels.attention import NAME as OWN_ATTENTION
from moodpo.kernels.lora import fuse_lora
from moodpo.models.logps import completion_logps, head_is_linear
from moodpo.models.reach import reach_of
from moodpo.training.paths import (
    FastPaths,
    describe_lora,
    find_fast_paths,
    try_own_attention,
)
from tiny_architectures import build
from tiny_policies import tiny_model, tiny_tokenizer
from tiny_trainers import make_trainer

PROMPTS = [(3, 4, 5, 6), (7, 8)]
PAIRS = [((9, 10), (11, 12, 13)), ((14,), (15, 16))]


def adapted(model, **settings):
    defaults = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**{**defaults, **settings}))


def in_full_precision():
    return torch.autocast("cpu", enabled=False)


def logps(model, *, linear_head=True):
    batch = collate_pairs(PROMPTS, PAIRS, pad_token_id=0)
    return completion_logps(model, batch, linear_head=linear_head).logps


# --- packed pairs ---


def test_a_window_is_packed_up_to_its_size():
    paths = FastPaths(packed=True, linear_head=True, window=6)
    prompts, pairs = [(1, 2, 3), (1, 2, 3)], [((4, 5, 6), (7,)), ((4, 5, 6, 7), (8,))]
    assert paths.lengths(prompts, pairs) == [3 + 3 + 1, 2 * (3 + 4)]
    assert paths.collate(prompts[:1], pairs[:1], pad_token_id=0).input_ids.shape == (1, 7)
    both = paths.collate(prompts, pairs, pad_token_id=0)
    assert both.input_ids.shape == (4, 7)  # 14 tokens a pair, as the longer one said
    assert both.owners.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 3]
    assert both.targets.tolist() == [4, 5, 6, 7, 4, 5, 6, 7, 8]


def test_lengths_know_the_padded_size_of_every_batch():
    paths = FastPaths(packed=True, linear_head=True, window=6)
    prompts = [(1,) * n for n in (1, 5, 2, 6, 3, 4)]
    pairs = [((1,) * a, (1,) * b) for a, b in ((5, 5), (1, 1), (1, 4), (1, 2), (3, 1), (3, 2))]
    lengths = paths.lengths(prompts, pairs)
    order = sorted(range(len(pairs)), key=lengths.__getitem__)
    for end in range(1, len(order) + 1):
        rows = order[:end]
        batch = paths.collate([prompts[i] for i in rows], [pairs[i] for i in rows], pad_token_id=0)
        assert batch.input_ids.numel() == len(rows) * lengths[rows[-1]]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("llama", {}, (None, "")),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}, (None, "")),
        ("mistral_window", {"sliding_window": 4096}, (4096, "")),
        ("gemma3", {"sliding_window": 512}, (512, "")),
        ("llama4", {"attention_chunk_size": 512}, (512, "")),
        ("gemma3", {}, (8, "")),
        ("modernbert_decoder", {}, (None, "local attention, local_attention 16")),
        ("gpt_neo", {"window_size": 256}, (None, "local attention, window_size 256")),
        ("lfm2", {}, (None, "layers that are not plain attention: LinearAttentionLayer")),
    ],
)
def test_how_far_layers_look_back(name, settings, expected):
    assert reach_of(build(name, **settings)) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.2, 0.02])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "mpt", "bloom", "qwen3_5"])
def test_rounding_and_small_weights_change_no_decision(name, scale, dtype):
    model = build(name, initializer_range=scale).to(dtype)
    assert find_fast_paths(model).packed == (name in ("llama", "gpt2", "qwen3_moe"))


@pytest.mark.parametrize("name", ["llama", "mpt", "qwen3_5"])
def test_quantized_models_are_tried_in_the_precision_they_train_in(name):
    model = build(name)
    model.get_output_embeddings().weight = nn.Parameter(
        model.get_output_embeddings().weight.detach().bfloat16()
    )
    model.is_quantized = True  # what it mixes, float32 and bfloat16, only autocast can multiply
    paths = find_fast_paths(model)
    assert (paths.packed, paths.linear_head) == (name == "llama", True)


def test_a_model_that_answers_everything_alike_is_judged_by_what_it_says_of_itself():
    model, alibi = build("llama"), build("mpt")
    with torch.no_grad():
        for parameter in [*model.parameters(), *alibi.parameters()]:
            parameter.zero_()
    assert find_fast_paths(model).packed
    assert "the trial shows nothing" in find_fast_paths(alibi).reason


def test_numbers_that_are_none_are_no_agreement():
    model = build("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    assert "nan nats" in find_fast_paths(model).reason


def test_attention_that_reads_no_block_mask_gets_sequences():
    def blind(module, query, key, value, attention_mask, **kwargs):
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("blind_of_a_test", blind)
    model = build("llama")
    model.set_attn_implementation("blind_of_a_test")
    paths = find_fast_paths(model)
    assert paths.reason == "blind_of_a_test reads no block mask"
    batch = paths.collate(PROMPTS, PAIRS, pad_token_id=0)
    assert batch.attention_mask is None
    torch.testing.assert_close(
        completion_logps(model, batch, linear_head=True).logps, logps(build("llama"))
    )


def test_a_trial_leaves_no_trace():
    model = adapted(tiny_model(), lora_dropout=0.5).train()
    model.base_model.model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    find_fast_paths(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is None for p in model.parameters())


def test_a_trial_costs_a_few_short_passes_and_a_step_none():
    model, sizes = build("llama"), []
    model.model.embed_tokens.register_forward_hook(lambda *args: sizes.append(args[1][0].numel()))
    paths = find_fast_paths(model)
    assert len(sizes) <= 4
    assert sum(sizes) <= 160
    del sizes[:]
    paths.collate(PROMPTS, PAIRS, pad_token_id=0)
    assert sizes == []


def test_what_is_no_causal_model_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ConfigError, match=r"T5ForConditionalGeneration.*causal language model"):
        find_fast_paths(T5ForConditionalGeneration(config))


def test_processes_take_only_what_all_of_them_found():
    paths = FastPaths(packed=True, linear_head=True)
    assert paths.agreed(lambda own: own) == paths
    agreed = paths.agreed(lambda own: torch.cat([own, torch.tensor([[0, 1]])]))
    assert (agreed.packed, agreed.linear_head) == (False, True)
    assert agreed.reason == "another process found a difference"


def test_a_trainer_says_which_paths_it_takes(tmp_path, caplog):
    reference = build("lfm2", vocab_size=len(tiny_tokenizer()))
    with caplog.at_level(logging.INFO, "moodpo"):
        trainer = make_trainer(tmp_path, ref_model=reference)
    assert (trainer.learner.paths.packed, trainer.learner.reference_paths.packed) == (True, False)
    assert "Fast paths: packed pairs on; tiled head on; " in caplog.text
    assert "; fused LoRA off (no LoRA layers); own attention off (float32)" in caplog.text
    assert "; reference: packed pairs off (layers that are not plain attention" in caplog.text


@pytest.mark.parametrize(
    ("policy", "reference"), [("gemma3", "lfm2"), ("llama", "mpt"), ("qwen3_5", "llama")]
)
def test_a_trainer_scores_policy_and_reference_rightly(tmp_path, monkeypatch, policy, reference):
    settings = {"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 1024}
    monkeypatch.setattr("tiny_trainers.tiny_model", lambda: build(policy, **settings))
    reference = build(reference, **settings, seed=1)
    trainer = make_trainer(tmp_path, ref_model=reference, max_steps=1, temperature=0.7)
    record, differences = trainer.recorder.note_pairs, []

    def plain(model, pairs):
        return torch.tensor(
            [
                [plain_logp(model, prompt, completion, 0.7) for completion in pair]
                for prompt, pair in zip(pairs.prompt_ids, pairs.completion_ids, strict=True)
            ]
        )

    def compared(pairs, scored):
        actual = scored.logps.detach().view(-1, 2)
        differences.append((actual - plain(trainer.model, pairs)).abs().max().item())
        differences.append((pairs.ref_logps - plain(reference, pairs)).abs().max().item())
        record(pairs, scored)

    trainer.recorder.note_pairs = compared
    trainer.train()
    assert len(differences) >= 2
    assert max(differences) < 1e-4


@torch.no_grad()
def plain_logp(model, prompt, completion, temperature):
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
    at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return (logits / temperature).log_softmax(-1)[at, completion].sum().item()


# --- the head ---


class Doubling(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Named(nn.Linear):
    """Another name, the same product."""


class Adapted(nn.Linear):
    def __init__(self, *sizes, **kwargs):
        super().__init__(*sizes, **kwargs)
        self.extra = nn.Parameter(torch.zeros(()))  # nothing at first, but trained

    def forward(self, input):
        return super().forward(input) + self.extra


@pytest.mark.parametrize(("kind", "linear"), [(Doubling, False), (Named, True), (Adapted, False)])
def test_subclasses_of_a_linear_head_are_tried(kind, linear):
    model = build("llama")
    head = kind(32, 61, bias=False)
    head.load_state_dict({"weight": model.lm_head.weight}, strict=False)
    model.set_output_embeddings(head)
    assert head_is_linear(model) == linear


def test_a_cap_is_found_before_logits_are_large():
    assert not head_is_linear(build("gemma2", initializer_range=1e-3))
    assert head_is_linear(build("gemma2", initializer_range=1e-3, final_logit_softcapping=None))


class Counting(ModelHook):
    calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        return args, kwargs


def test_a_hook_of_the_head_outlives_its_trial():
    model, hook = build("llama"), Counting()
    add_hook_to_module(model.lm_head, hook)
    hooked = model.lm_head.__dict__["forward"]
    assert head_is_linear(model)
    logps(model)
    assert model.lm_head.__dict__["forward"] is hooked
    before = hook.calls
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert hook.calls == before + 1


# --- LoRA ---


def test_hooked_layers_are_trained_through_their_own_forward():
    torch.manual_seed(0)
    model = adapted(tiny_model())
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
    below, replaced, hook = layers[0], layers[1], Counting()
    add_hook_to_module(below.base_layer, hook)
    forward = replaced.forward
    replaced.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    assert fuse_lora(model) == len(layers) - 1
    assert describe_lora(model) == f"on ({len(layers) - 2} of {len(layers)} layers)"
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert hook.calls == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, "off (no LoRA layers)"),
        ({}, "on (14 layers)"),
        ({"use_dora": True}, "off (its layers do more than add a product)"),
        ({"bias": "all"}, "on (14 layers)"),
    ],
)
def test_what_is_said_of_lora(settings, expected):
    model = tiny_model() if settings is None else adapted(tiny_model(), **settings)
    fuse_lora(model)
    fuse_lora(model)  # a second trainer of the same model
    assert describe_lora(model) == expected


# --- own attention ---


@pytest.mark.parametrize("name", ["llama", "gpt2", "deepseek_v3", "qwen3_moe", "phi3", "gptj"])
def test_own_attention_is_taken_where_it_is_the_same(name):
    expected = logps(build(name).to(torch.bfloat16))
    model = build(name).to(torch.bfloat16)
    taken = try_own_attention(model, find_fast_paths(model), autocast=in_full_precision)
    has_sdpa = build(name).config._attn_implementation == "sdpa"
    assert taken == ("on" if has_sdpa else "off (eager attention)")
    actual = logps(model)
    torch.testing.assert_close(actual, expected, atol=0.2, rtol=0)
    actual.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_own_attention_is_put_back_where_it_is_not_the_same(monkeypatch):
    monkeypatch.setattr(
        "moodpo.kernels.attention.masked_attention", lambda query, *_: query * 0 + 1
    )
    model = build("llama").to(torch.bfloat16)
    said = try_own_attention(model, find_fast_paths(model), autocast=in_full_precision)
    assert said.startswith("off (log-probabilities change by")
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("name", "dtype", "attention", "expected"),
    [
        ("llama", torch.float32, "sdpa", "off (float32)"),
        ("llama", torch.bfloat16, "eager", "off (eager attention)"),
        ("mistral_window", torch.bfloat16, "sdpa", "off (pairs are not packed)"),
    ],
)
def test_own_attention_that_is_not_wanted_is_not_set(name, dtype, attention, expected):
    model = build(name).to(dtype)
    model.set_attn_implementation(attention)
    said = try_own_attention(model, find_fast_paths(model), autocast=in_full_precision)
    assert said == expected
    assert model.config._attn_implementation == attention != OWN_ATTENTION


def test_mixed_precision_counts_as_low():
    model = build("llama")
    taken = try_own_attention(
        model,
        find_fast_paths(model),
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    assert taken == "on"


# --- router logits ---


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoehybrid", "jamba"])
def test_router_logits_asked_for_in_the_configuration_change_nothing(name, lora):
    def scored(**settings):
        torch.manual_seed(0)
        model = build(name, **settings)
        model = adapted(model, target_modules=["q_proj", "v_proj"]) if lora else model
        paths = find_fast_paths(model)
        batch = paths.collate(PROMPTS, PAIRS, pad_token_id=0)
        values = completion_logps(model, batch, linear_head=paths.linear_head).logps
        values.sum().backward()
        generator = HFGenerator(model, eos_token_ids=[2], pad_token_id=0)
        sampling = SamplingConfig(max_new_tokens=4)
        return values.detach(), generator.generate(
            PROMPTS, sampling=sampling, num_completions=2, seeds=range(2)
        )

    expected, texts = scored()
    actual, same = scored(output_router_logits=True)
    assert torch.equal(actual, expected)
    assert same == texts
