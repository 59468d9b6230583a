"""A merged model computes what base and adapter compute together, whatever shares a weight."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from moodpo.cli.export import run as export
from moodpo.manifest import RunManifest
from moodpo.models import merge as module
from moodpo.models.merge import merge_adapter, untie_adapted
from moodpo.policy import SteerablePolicy
from tiny_policies import tiny_model, tiny_tokenizer

IDS = torch.tensor([[1, 5, 9, 200]])


def tied_llama():
    config = copy.deepcopy(tiny_model().config)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def tied_gpt2():
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()


def adapted(base, **settings):
    """The base with an adapter that changes a lot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


CASES = [
    (tied_llama, {"target_modules": ["q_proj"]}, True),
    (tied_llama, {"target_modules": ["q_proj", "lm_head"]}, False),
    (tied_llama, {"target_modules": ["q_proj", "embed_tokens"]}, False),
    (tied_llama, {"target_modules": ["lm_head", "embed_tokens"]}, False),
    (tied_llama, {"target_modules": ["lm_head"], "use_dora": True}, False),
    (tied_llama, {"target_modules": ["lm_head"], "use_rslora": True}, False),
    (tied_llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    (tied_llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
    (
        tied_llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        False,
    ),
    (tied_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]}, True),
    (tied_gpt2, {"target_modules": ["c_attn", "lm_head"]}, False),
    (tied_gpt2, {"target_modules": ["wte"]}, False),
    (tiny_model, {"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, False),
]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")
@pytest.mark.parametrize(
    ("base", "settings", "tied"), CASES, ids=lambda v: getattr(v, "__name__", None) or str(v)
)
def test_merged_equals_unmerged_in_memory_and_on_disk(tmp_path, base, settings, tied):
    model = adapted(base(), **settings)
    expected = logits(model)
    assert not torch.allclose(expected, logits(base()), atol=1e-2)
    merged = merge_adapter(model)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


def test_a_merge_that_computes_something_else_is_not_returned(monkeypatch):
    monkeypatch.setattr(module, "untie_adapted", lambda model: None)
    assert merge_adapter(adapted(tied_llama(), target_modules=["lm_head"])) is None


def test_only_what_is_adapted_and_shared_is_copied():
    model = adapted(tied_llama(), target_modules=["q_proj", "lm_head"])
    embedding = model.get_base_model().model.embed_tokens.weight
    query = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    untie_adapted(model)
    assert model.get_base_model().lm_head.base_layer.weight is not embedding
    assert model.get_base_model().model.embed_tokens.weight is embedding
    assert model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight is query


@pytest.fixture
def policy(tmp_path):
    """A trained output folder whose adapter is on a tied head."""
    base = tmp_path / "base"
    tied_llama().save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    model = adapted(
        AutoModelForCausalLM.from_pretrained(base), target_modules=["q_proj", "lm_head"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT saves the embedding beside it
        model.save_pretrained(tmp_path / "policy")
    RunManifest(
        objectives=("a", "b"),
        rewards=(),
        conditioning={
            "objectives": ["a", "b"],
            "weight_format": "decimal",
        },
        scalarization="linear",
        normalizer={},
        reference={},
        base_model={"path": str(base)},
    ).save(tmp_path / "policy")
    return tmp_path / "policy", logits(model)


@pytest.mark.parametrize("merges", [True, False])
def test_a_policy_on_a_tied_head_is_served_and_exported_right(
    policy, tmp_path, monkeypatch, merges
):
    folder, expected = policy
    if not merges:
        monkeypatch.setattr(module, "untie_adapted", lambda model: None)
    served = SteerablePolicy.from_pretrained(folder, device="cpu", dtype="float32").model
    assert isinstance(served, PeftModel) is not merges
    torch.testing.assert_close(logits(served), expected, atol=1e-4, rtol=1e-4)
    argv = [str(folder), "--output_dir", str(tmp_path / "merged")]
    if not merges:
        with pytest.raises(ValueError, match="cannot be merged"):
            export(argv)
        assert not (tmp_path / "merged").exists()
        return
    assert export(argv) == 0
    assert {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "merged").iterdir()} == {"0o644"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)
