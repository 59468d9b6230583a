import json
import logging
from math import log

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from moodpo.models.adapters import add_adapter
from moodpo.training.dropout import Dropouts, noisy_module, seeded
from moodpo.training.trainer import MOODPOTrainer
from tiny_policies import tiny_tokenizer
from tiny_trainers import PROMPTS, capitals, config, logged, vowels

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**LAYERS, "intermediate_size": 24, "num_key_value_heads": 1}


def gpt2(**rates):
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 1024}
    return GPT2LMHeadModel(GPT2Config(**small, **sizes(), **rates))


def llama(**rates):
    return LlamaForCausalLM(LlamaConfig(**GATED, **sizes(), **rates))


def opt(**rates):
    small = {**LAYERS, "ffn_dim": 24, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(**small, **sizes(), **rates))


def falcon(**rates):
    return FalconForCausalLM(FalconConfig(**LAYERS, **sizes(), **rates))


def bloom(**rates):
    small = {"hidden_size": 16, "n_layer": 2, "n_head": 2}
    return BloomForCausalLM(BloomConfig(**small, **sizes(), **rates))


def mixtral(**rates):
    return MixtralForCausalLM(MixtralConfig(**GATED, num_local_experts=4, **sizes(), **rates))


def lora(**rates):
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **rates)
    return get_peft_model(llama(), adapter)


def sizes():
    return {"vocab_size": len(tiny_tokenizer()), **SPECIAL}


# Model, its rates, where the noise is first seen, and what a config must say afterwards.
NOISY = {
    "modules": (gpt2, {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, "drop"),
    "attention": (llama, {"attention_dropout": 0.3}, "self_attn.o_proj"),
    "functional": (opt, {"dropout": 0.1, "attention_dropout": 0.1}, "out_proj"),
    "whole blocks": (opt, {"dropout": 0.0, "layerdrop": 0.7}, ""),
    "from the config": (falcon, {"hidden_dropout": 0.2, "attention_dropout": 0.2}, "h.0"),
    "adding": (bloom, {"hidden_dropout": 0.2, "attention_dropout": 0.2}, "attention"),
    "noisy routers": (mixtral, {"router_jitter_noise": 0.5}, "mlp"),
    "adapter": (lora, {"lora_dropout": 0.05}, "lora_dropout.default"),
}


def make(name):
    build, rates, where = NOISY[name]
    torch.manual_seed(0)
    return build(**rates).eval(), where


@pytest.mark.parametrize("name", NOISY)
def test_every_dropout_is_found_and_put_back(name):
    model, where = make(name)
    said, modes = model.config.to_dict(), [module.training for module in model.modules()]
    torch.manual_seed(1)
    generator = torch.get_rng_state()
    assert where in noisy_module(model)
    dropouts = Dropouts(model)
    with dropouts.off():
        assert noisy_module(model) is None
    assert where in noisy_module(model)
    assert model.config.to_dict() == said
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


def test_without_dropout_there_is_nothing_to_switch_off():
    assert len(Dropouts(llama())) == 0
    assert (
        len(Dropouts(gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, summary_first_dropout=0))) == 0
    )


def test_what_is_random_besides_is_named():
    model = llama()
    model.model.norm.register_forward_hook(
        lambda module, _, output: output + torch.randn_like(output) if module.training else None
    )
    assert noisy_module(model) == "model.norm"


def test_seeded_passes_leave_the_generator_alone():
    device = torch.device("cpu")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(5, device):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(5, device):
        assert torch.equal(torch.rand(3), first)


def train(folder, model, *, adapter=None, **settings):
    trainer = MOODPOTrainer(
        model,
        reward_funcs=[vowels, capitals],
        args=config(folder, **{"max_steps": 1, "max_new_tokens": 6, **settings}),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}),
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS[4:6]}),
        processing_class=tiny_tokenizer(),
        peft_config=adapter,
    )
    trainer.train()
    return trainer


def first_step(trainer):
    return (
        logged(trainer, "kl")[0],
        logged(trainer, "rewards/margins")[0],
        logged(trainer, "loss")[0],
    )


@pytest.mark.parametrize("name", [name for name in NOISY if name != "adding"])
def test_a_policy_that_equals_its_reference_has_no_kl(tmp_path, name):
    model, _ = make(name)
    trainer = train(tmp_path, model, reference="initial")
    assert first_step(trainer) == pytest.approx((0.0, 0.0, log(2)), abs=2e-5)


@pytest.mark.parametrize("name", ["modules", "attention", "functional", "adapter"])
def test_dropout_that_is_asked_for_is_kept(tmp_path, name):
    model, _ = make(name)
    trainer = train(tmp_path, model, reference="initial", disable_dropout=False)
    kl, margins, _ = first_step(trainer)
    assert abs(kl) > 1e-4
    assert margins != 0


def test_no_dropout_where_activations_are_computed_again(tmp_path):
    model, _ = make("functional")
    twin, _ = make("functional")
    twin.config.dropout = twin.config.attention_dropout = 0.0
    twin = type(twin)(twin.config).eval()
    twin.load_state_dict(model.state_dict())
    settings = {"activation_checkpointing": True, "max_steps": 2}
    ours = train(tmp_path / "a", model, **settings).model.state_dict()
    theirs = train(tmp_path / "b", twin, **settings).model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_saved_model_says_what_the_user_said(tmp_path):
    model, _ = make("attention")
    trainer = train(tmp_path, model, save_strategy="steps", save_steps=1)
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert json.loads((folder / "config.json").read_text())["attention_dropout"] == 0.3


def test_evaluation_does_not_change_what_is_dropped(tmp_path):
    runs = []
    for name, evaluates in (("without", {}), ("with", {"eval_strategy": "steps", "eval_steps": 1})):
        torch.manual_seed(0)
        adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
        settings = {"max_steps": 2, "disable_dropout": False, **evaluates}
        runs.append(train(tmp_path / name, llama(), adapter=adapter, **settings).model.state_dict())
    assert all(torch.equal(runs[0][key], value) for key, value in runs[1].items())


def test_resumed_dropout_is_that_of_a_run_that_was_not_interrupted(tmp_path):
    torch.manual_seed(0)
    start = llama(attention_dropout=0.3).state_dict()
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-1")):
        model = llama(attention_dropout=0.3)
        model.load_state_dict(start)
        saves = {"save_strategy": "steps", "save_steps": 1}
        settings = {"max_steps": 2, "disable_dropout": False, "logging_steps": 1, **saves}
        trainer = MOODPOTrainer(
            model,
            reward_funcs=[vowels, capitals],
            args=config(tmp_path, **{"max_new_tokens": 6, **settings}),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}),
            processing_class=tiny_tokenizer(),
        )
        torch.rand(17)  # another state of the global generator
        trainer.train(resume_from_checkpoint=resume)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items())


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
def test_adapters_of_fused_experts_take_the_default_dropout(tmp_path):
    torch.manual_seed(0)
    experts = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**GATED, **experts, head_dim=8, **sizes()))
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.05)
    trainer = train(tmp_path, model, adapter=adapter)
    assert first_step(trainer) == pytest.approx((0.0, 0.0, log(2)), abs=2e-5)
    assert adapter.lora_dropout == 0.05  # the caller's own
    assert trainer.model.peft_config["default"].lora_dropout == 0


def test_noise_that_stays_is_said(tmp_path, caplog):
    model = llama()
    model.model.norm.register_forward_hook(
        lambda module, _, output: output + torch.randn_like(output) if module.training else None
    )
    with caplog.at_level(logging.WARNING, logger="moodpo"):
        train(tmp_path, model)
    assert "random in model.norm although dropout is off" in caplog.text


def test_added_adapters_keep_dropout_only_where_it_is_asked_for():
    rates = []
    for dropout in (True, False):
        adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5)
        model = add_adapter(llama(), adapter, dropout=dropout)
        rates.append({v for owner, _, v in Dropouts(model)._found if owner})
    assert rates == [{0.5}, set()]
