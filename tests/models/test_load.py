"""A folder that does not hold every weight is refused, whoever loads it."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from moodpo.baselines.base import _load_model as load_baseline_model
from moodpo.baselines.members import _load as load_for_baselines
from moodpo.errors import ConfigError
from moodpo.models.load import load_adapter, load_model
from moodpo.policy import SteerablePolicy
from moodpo.training.reference import make_reference
from moodpo.training.trainer import MOODPOTrainer
from tiny_policies import save_tiny_policy, tiny_model
from tiny_trainers import capitals, config, vowels


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture(scope="module")
def short(whole, tmp_path_factory):
    """config.json says four layers, the weights are of two."""
    folder = tmp_path_factory.mktemp("models") / "short"
    shutil.copytree(whole, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 4}))
    return folder


def train(folder, tmp_path):
    return MOODPOTrainer(
        str(folder),
        reward_funcs=[vowels, capitals],
        args=config(tmp_path),
        train_dataset=[{"prompt": "Hello"}],
    )


LOADERS = {
    "train": train,
    "reference": lambda folder, _: make_reference(str(folder), tiny_model(), base=None, start=None),
    "generate": lambda folder, _: SteerablePolicy.from_pretrained(folder, objectives=["a", "b"]),
    "baselines": lambda folder, _: load_for_baselines(str(folder), None),
    "saved baselines": lambda folder, tmp: load_baseline_model(str(folder), tmp, (), torch.float32),
}


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_missing_layers_are_not_random_ones(loader, short, tmp_path):
    with pytest.raises(ConfigError, match=r"18 weights are missing, such as model\.layers\.2"):
        loader(short, tmp_path)


def test_tied_heads_are_not_missing(tmp_path):
    settings = copy.deepcopy(tiny_model().config)
    settings.tie_word_embeddings = True
    LlamaForCausalLM(settings).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_model(str(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "no_such"}'),
    ],
)
def test_damaged_folders_are_named_with_the_remedy(whole, tmp_path, damage):
    shutil.copytree(whole, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with pytest.raises(ConfigError, match=r"damaged cannot be loaded: .*Pass another\."):
        load_model(str(tmp_path / "damaged"), remedy="Pass another.")


@pytest.mark.parametrize(
    ("path", "remedy"), [("owner/gone", "--base_model"), ("models/gone", "--base_model")]
)
def test_a_base_that_is_not_here_is_named(whole, tmp_path, monkeypatch, path, remedy):
    monkeypatch.chdir(tmp_path)
    adapter(tmp_path / "out")
    settings = tmp_path / "out" / "adapter_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "base_model_name_or_path": path}))
    with pytest.raises(ValueError, match=path) as caught:
        SteerablePolicy.from_pretrained(tmp_path / "out", objectives=["a", "b"])
    assert remedy in str(caught.value)


# --- adapters -------------------------------------------------------------------------------


def adapter(folder, **settings):
    """Saves an adapter whose weights all count."""
    shape = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(tiny_model(), LoraConfig(**shape))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return model


def drop(folder, part):
    path = folder / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if part not in name}
    save_file(kept, path, metadata={"format": "pt"})


def add(folder, name):
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), name: torch.zeros(2, 2)}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "damage", "said"),
    [
        ({}, lambda f: drop(f, "layers.1.self_attn.q_proj.lora_B"), "1 weights are missing"),
        ({}, lambda f: drop(f, "v_proj"), "4 weights are missing"),
        (
            {"modules_to_save": ["lm_head"]},
            lambda f: drop(f, "lm_head"),
            "cannot be loaded: KeyError: .*lm_head.weight",
        ),
        ({}, lambda f: add(f, "base_model.model.other.lora_A.weight"), "1 weights have no place"),
        ({}, lambda f: (f / "adapter_model.safetensors").write_bytes(b"half"), "cannot be loaded"),
        ({}, lambda f: (f / "adapter_model.safetensors").unlink(), "cannot be loaded"),
        ({}, lambda f: (f / "adapter_config.json").write_text("{}"), "cannot be loaded"),
    ],
)
@pytest.mark.parametrize("name", ["default", "member-0"])
def test_incomplete_adapters_are_refused(tmp_path, settings, damage, said, name):
    adapter(tmp_path, **settings)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=said):
        load_adapter(tiny_model(), tmp_path, name=name)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "lora_alpha": 3},
        {"bias": "all"},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": "all-linear"},
        {"trainable_token_indices": [1, 2]},
        {"target_modules": None, "target_parameters": ["mlp.up_proj.weight"], "lora_dropout": 0.0},
    ],
    ids=str,
)
def test_complete_adapters_are_loaded_exactly(tmp_path, settings):
    saved = adapter(tmp_path, **settings).eval()
    loaded = load_adapter(tiny_model(), tmp_path).eval()
    ids = torch.tensor([[1, 5, 9, 200]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, saved(ids).logits)
        assert not torch.equal(loaded(ids).logits, tiny_model()(ids).logits)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_an_adapter_goes_on_being_trained(tmp_path):
    trained = {n for n, p in adapter(tmp_path).named_parameters() if p.requires_grad}
    loaded = load_adapter(tiny_model(), tmp_path, trainable=True)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == trained


def test_a_second_adapter_stays_beside_the_first(tmp_path):
    for name in ("one", "two"):
        adapter(tmp_path / name)
    model = load_adapter(tiny_model(), tmp_path / "one", name="one")
    assert set(load_adapter(model, tmp_path / "two", name="two").peft_config) == {"one", "two"}


def test_an_adapter_of_another_model_is_refused(tmp_path):
    adapter(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded: RuntimeError"):
        load_adapter(tiny_model(hidden_size=16), tmp_path)
