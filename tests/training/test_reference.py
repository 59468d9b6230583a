import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import KasaConfig
from transformers import LlamaConfig, LlamaForCausalLM

from moodpo.errors import ConfigError
from moodpo.models.adapters import wrap_model
from moodpo.training.reference import (
    AdapterOff,
    FrozenModel,
    Snapshot,
    check_agreement,
    known_base,
    make_reference,
    trainable_snapshot,
)

SHA = {"base": {}, "initial": {"sha256": None}}
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


def make_lora(rank=4, model=None, **settings):
    config = LoraConfig(**{"r": rank, "target_modules": "all-linear", **settings})
    return get_peft_model(model or make_model(), config).eval()


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
    assert reference.describe() == {"kind": kind, "path": "sft", **SHA[kind]}
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
    with pytest.raises(ConfigError, match=r"r: it has 2, the policy's has 4.*same rank"):
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


# Settings of adapters beyond plain LoRA: what training moves, and what lies under them.
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "random product": {"init_lora_weights": False},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [2, 3]},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "kasa": {"kasa_config": KasaConfig()},
    "repeated blocks": {"layer_replication": [[0, 1], [0, 1]]},
}
BIASED = ("bias all", "bias lora_only", "lora_bias")
REWRITING = ("pissa", "olora", "kasa", "repeated blocks")


def biased_model():
    """With biases to train, away from zero."""
    torch.manual_seed(0)
    config = make_model().config
    config.attention_bias = config.mlp_bias = True
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    return model


def model_of(name):
    return biased_model() if name in BIASED else make_model()


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_initial_is_the_policy_as_training_starts(name, trained):
    model = make_lora(model=model_of(name), **KINDS[name])
    if trained:  # though nobody says `start`
        disturb(model)
    expected = logits(model)
    reference = make_reference("initial", model, base="sft", start=None)
    assert reference.describe()["kind"] == "initial"
    check_agreement(model, reference)
    disturb(model)
    torch.testing.assert_close(reference_logits(reference), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="before the first step"):
        check_agreement(model, reference)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_base_under_a_fresh_adapter_is_the_model_before_it(name):
    model = model_of(name)
    expected = logits(model)
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", **KINDS[name]})
    model, fresh = wrap_model(model, config, dropout=False)
    if name in ("kasa", "repeated blocks"):  # gone for good
        with pytest.raises(ConfigError, match=r"switched off it is .* nats per token"):
            make_reference("base", model, base="sft", start=None, fresh=fresh)
        return
    reference = make_reference("base", model, base="sft", start=None, fresh=fresh)
    assert reference.describe()["kind"] == "base"
    check_agreement(model, reference)  # asked only where they agree: not of the random product
    assert reference.agrees is (name != "random product")
    disturb(model)
    torch.testing.assert_close(reference_logits(reference), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_base_under_an_adapter_that_was_handed_over(name):
    expected = logits(model_of(name))
    model = make_lora(model=model_of(name), **KINDS[name])
    disturb(model)  # an earlier iteration
    if name in REWRITING or name in ("bias all", "bias lora_only"):
        with pytest.raises(ConfigError, match="does not give the base model"):
            make_reference("base", model, base="sft", start="iter1")
        return
    reference = make_reference("base", model, base="sft", start="iter1")
    check_agreement(model, reference)  # a later iteration differs from its base
    disturb(model)
    torch.testing.assert_close(reference_logits(reference), expected)


@pytest.mark.parametrize("name", ["bias all", "bias lora_only"])
def test_biases_that_nobody_trained_yet_are_the_base(name):
    model = make_lora(model=biased_model(), **KINDS[name])
    reference = make_reference("base", model, base="sft", start=None)
    assert isinstance(reference, Snapshot)
    disturb(model)
    torch.testing.assert_close(reference_logits(reference), logits(biased_model()))


def test_weights_that_are_trained_beside_an_adapter_stay_on_without_it():
    model = make_lora()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    reference = make_reference("base", model, base="sft", start=None)
    disturb(model)
    torch.testing.assert_close(reference_logits(reference), logits(make_model()))


def test_a_second_adapter_that_is_frozen_is_part_of_the_initial_policy():
    model = make_lora()
    disturb(model)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("second" in name)
    expected = logits(model)
    reference = make_reference("initial", model, base="sft", start=None)
    disturb(model)
    torch.testing.assert_close(reference_logits(reference), expected)


@pytest.mark.parametrize(
    ("reference", "policy", "said"),
    [
        ({"lora_alpha": 64}, {}, "lora_alpha: it has 64, the policy's has 8"),
        ({"use_rslora": True}, {}, "use_rslora: it has True"),
        ({}, {"use_rslora": True}, "use_rslora: it has False"),
        ({"use_dora": True}, {}, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, {}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, {}, "alpha_pattern"),
        ({"bias": "all"}, {}, "bias: it has 'all'"),
        ({"lora_bias": True}, {}, "lora_bias"),
        ({}, {"target_modules": ["q_proj"]}, "only it has .* and 9 more"),
        ({"target_modules": ["q_proj"]}, {}, "it lacks"),
        ({"modules_to_save": ["norm"]}, {}, "only it has .*norm"),
        ({}, {"modules_to_save": ["norm"]}, "it lacks .*norm"),
        ({"trainable_token_indices": [2]}, {"trainable_token_indices": [3]}, "token_indices"),
        ({"init_lora_weights": "pissa"}, {}, "rewritten base model"),
        ({}, {"init_lora_weights": "olora"}, "rewrites the weights"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_on_disk_that_would_compute_something_else(tmp_path, reference, policy, said):
    other = make_lora(model=biased_model(), **reference)
    disturb(other)
    other.save_pretrained(tmp_path)
    model = make_lora(model=biased_model(), **policy)
    before = trainable_snapshot(model)
    with pytest.raises(ConfigError, match=said):
        make_reference(str(tmp_path), model, base="sft", start=None)
    assert all(torch.equal(before[n], v) for n, v in trainable_snapshot(model).items())


@pytest.mark.parametrize(
    "name",
    ["rslora", "dora", "lora_bias", "embedding", "saved modules", "trained tokens", "bias all"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_on_disk_of_the_same_kind(tmp_path, name):
    other = make_lora(model=model_of(name), **KINDS[name])
    disturb(other)
    other.save_pretrained(tmp_path)
    expected = logits(PeftModel.from_pretrained(model_of(name), tmp_path).eval())
    model = make_lora(model=model_of(name), **KINDS[name])
    start = logits(model)
    reference = make_reference(str(tmp_path), model, base="sft", start=None)
    assert torch.equal(logits(model), start)
    disturb(model)
    torch.testing.assert_close(reference_logits(reference), expected)


def test_an_adapter_on_disk_goes_to_the_adapter_that_is_trained(tmp_path):
    other = make_lora()
    disturb(other)
    expected = logits(other)
    other.save_pretrained(tmp_path)
    model = get_peft_model(
        make_model(), LoraConfig(r=4, target_modules="all-linear"), adapter_name="member-0"
    ).eval()
    reference = make_reference(str(tmp_path), model, base="sft", start=None)
    assert torch.equal(reference_logits(reference), expected)


def test_an_adapter_on_disk_of_another_base_model(tmp_path):
    make_model().save_pretrained(tmp_path / "sft")
    changed = make_model()
    disturb(changed)
    changed.save_pretrained(tmp_path / "iter1")
    for name in ("sft", "iter1"):
        base = LlamaForCausalLM.from_pretrained(tmp_path / name)
        make_lora(model=base).save_pretrained(tmp_path / f"of-{name}")
    model = make_lora(model=LlamaForCausalLM.from_pretrained(tmp_path / "iter1"))
    make_reference(str(tmp_path / "of-iter1"), model, base=None, start=None)
    with pytest.raises(ConfigError, match=r"trained on .*sft, the policy's adapter lies on"):
        make_reference(str(tmp_path / "of-sft"), model, base=None, start=None)


def test_a_fresh_adapter_on_an_earlier_whole_model_is_not_on_the_base(tmp_path):
    make_model().save_pretrained(tmp_path)
    started = make_model()
    disturb(started)
    config = LoraConfig(r=4, target_modules="all-linear")
    model, fresh = wrap_model(started, config, dropout=False)
    given = {"start": "iter1", "fresh": fresh}
    reference = make_reference("base", model, base=str(tmp_path), **given)
    assert torch.equal(reference_logits(reference), logits(make_model()))
    with pytest.raises(ConfigError, match="sft_model_path"):
        make_reference("base", model, base=None, **given)


def test_the_name_of_a_started_model_is_not_that_of_its_base():
    model = make_model()
    model.config._name_or_path = "iter1"
    assert known_base(model, None, "iter1") is None
    assert known_base(model, "sft", "iter1") == "sft"
    assert known_base(model, None, None) == "iter1"
    assert known_base(make_lora(model=model), None, "adapter") == "iter1"


def test_given_models_that_are_no_reference():
    model = make_model()
    with pytest.raises(ConfigError, match="shares trained parameters"):
        make_reference("base", model, base=None, start=None, ref_model=model)
    assert all(p.requires_grad for p in model.parameters())
    adapted = make_lora(model=model)  # PEFT changes the model in place
    with pytest.raises(ConfigError, match="shares trained parameters"):
        make_reference("base", adapted, base=None, start=None, ref_model=model)
    small = make_model()
    small.resize_token_embeddings(30)
    with pytest.raises(ConfigError, match="vocabulary of 30 tokens and the policy one of 32"):
        make_reference("base", make_model(), base=None, start=None, ref_model=small)


def test_a_model_on_disk_with_another_vocabulary(tmp_path):
    small = make_model()
    small.resize_token_embeddings(30)
    small.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="vocabulary of 30 tokens"):
        make_reference(str(tmp_path), make_model(), base=None, start=None)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        make_reference(str(tmp_path / "none"), make_model(), base=None, start=None)


def test_a_given_model_drops_nothing():
    given = make_model()
    reference = make_reference("base", make_model(), base=None, start=None, ref_model=given)
    given.train()
    with reference.active() as model:
        assert not any(module.training for module in model.modules())
