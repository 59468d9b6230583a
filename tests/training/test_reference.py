import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from moodpo.errors import ConfigError
from moodpo.training.reference import (
    AdapterOff,
    FrozenModel,
    Snapshot,
    make_reference,
    trainable_snapshot,
)

IDS = torch.tensor([[1, 2, 3, 4]])


def make_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
        )
    ).eval()


def make_lora(rank=4):
    model = get_peft_model(make_model(), LoraConfig(r=rank, target_modules="all-linear"))
    return model.eval()


def disturb(model):
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.clone()


def reference_logits(reference):
    with reference.active() as model:
        return logits(model)


@pytest.mark.parametrize("kind", ["base", "initial"])
def test_a_fresh_adapter_is_its_own_cheapest_reference(kind):
    model = make_lora()
    before = logits(model)
    reference = make_reference(kind, model, base="sft", start=None)
    assert isinstance(reference, AdapterOff)
    disturb(model)
    after = logits(model)
    assert torch.equal(reference_logits(reference), before)
    assert torch.equal(logits(model), after)  # and the policy is as it was


def test_base_and_initial_differ_for_a_second_iteration():
    model = make_lora()
    base_logits = logits(model)
    disturb(model)
    start_logits = logits(model)
    base = make_reference("base", model, base="sft", start="iter1")
    initial = make_reference("initial", model, base="sft", start="iter1")
    disturb(model)
    assert torch.equal(reference_logits(base), base_logits)
    assert torch.equal(reference_logits(initial), start_logits)
    assert base.describe() == {"kind": "base", "path": "sft"}
    assert initial.describe() == {"kind": "initial", "path": "iter1", "sha256": None}


@pytest.mark.parametrize("kind", ["base", "initial"])
def test_full_training_is_held_to_a_snapshot(kind):
    model = make_model()
    before = logits(model)
    reference = make_reference(kind, model, base="sft", start=None)
    assert isinstance(reference, Snapshot)
    disturb(model)
    after = logits(model)
    assert torch.equal(reference_logits(reference), before)
    assert torch.equal(logits(model), after)


def test_the_policy_is_restored_even_when_the_reference_pass_fails():
    model = make_model()
    reference = make_reference("initial", model, base=None, start=None)
    disturb(model)
    after = logits(model)
    with pytest.raises(RuntimeError, match="boom"), reference.active():
        raise RuntimeError("boom")
    assert torch.equal(logits(model), after)


def test_an_adapter_on_disk(tmp_path):
    model = make_lora()
    disturb(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    disturb(model)
    after = logits(model)
    reference = make_reference(str(tmp_path), model, base="sft", start=None)
    assert torch.equal(reference_logits(reference), expected)
    assert torch.equal(logits(model), after)
    assert len(reference.describe()["sha256"]) == 64


def test_a_model_on_disk(tmp_path):
    model = make_model()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    disturb(model)
    for kind, base, start in ((str(tmp_path), None, None), ("base", str(tmp_path), "iter1")):
        reference = make_reference(kind, model, base=base, start=start)
        assert isinstance(reference, FrozenModel)
        assert torch.equal(reference_logits(reference), expected)


def test_references_that_cannot_be_made(tmp_path):
    make_lora(rank=2).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="same LoRA rank"):
        make_reference(str(tmp_path), make_lora(rank=4), base="sft", start=None)
    with pytest.raises(ConfigError, match="Merge it first"):
        make_reference(str(tmp_path), make_model(), base="sft", start=None)
    with pytest.raises(ConfigError, match="sft_model_path"):
        make_reference("base", make_model(), base=None, start="iter1")


def test_a_given_model_is_frozen_and_used_as_it_is():
    given = make_model()
    reference = make_reference("base", make_lora(), base="sft", start=None, ref_model=given)
    with reference.active() as model:
        assert model is given
    assert not any(p.requires_grad for p in given.parameters())


def test_snapshots_hold_trainable_parameters_only():
    names = trainable_snapshot(make_lora()).keys()
    assert names
    assert all("lora_" in name for name in names)
