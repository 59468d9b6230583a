"""A folder that does not hold every weight is refused, whoever loads it."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from moodpo.errors import ConfigError
from moodpo.models.find import PolicyFiles, find_policy, whole_model
from moodpo.models.load import (
    as_device,
    as_dtype,
    load,
    load_adapter,
    load_given,
    load_model,
    load_tokenizer,
)
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
    "given": lambda folder, _: load_given(str(folder), None),
    "beside": lambda folder, _: load(
        whole_model(str(folder)), dtype=torch.float32, device=torch.device("cpu"), adapter="beside"
    ),
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
    load_model(whole_model(str(tmp_path)), dtype=torch.float32, adapter=None)


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
    files = whole_model(str(tmp_path / "damaged"))
    with pytest.raises(ConfigError, match=r"damaged cannot be loaded: ") as caught:
        load_model(files, dtype=torch.float32, adapter=None)
    assert "base_model=" not in str(caught.value)
    under = replace(files, adapters={"default": "out"})
    with pytest.raises(ConfigError, match=r"damaged cannot be loaded: .*base_model=\."):
        load_model(under, dtype=torch.float32, adapter="beside")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"The tokenizer of {tmp_path} cannot be loaded"):
        load_tokenizer(whole_model(str(tmp_path)))


def test_what_is_given_is_not_loaded(whole):
    model, tokenizer = load_given(str(whole), None)
    assert model.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in model.parameters())
    again, same = load_given(model, None)
    assert again is model
    assert same.get_vocab() == tokenizer.get_vocab()
    assert load_given(model, tokenizer) == (model, tokenizer)
    with pytest.raises(ConfigError, match="Pass processing_class"):
        load_given(tiny_model(), None)


def test_devices_and_types_by_default():
    assert as_dtype(None, torch.device("cpu")) == torch.float32
    assert as_dtype(None, torch.device("cuda")) == torch.bfloat16
    assert as_dtype("float16", torch.device("cpu")) == torch.float16
    assert as_device("cpu") == torch.device("cpu")
    for wrong in ("float99", "int8", torch.int8, "Tensor"):
        with pytest.raises(ConfigError, match="Unknown dtype"):
            as_dtype(wrong, torch.device("cpu"))


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


@pytest.mark.parametrize(
    ("use", "dtype", "adapters", "trained"),
    [
        ("merged", torch.float32, False, False),
        ("merged", torch.bfloat16, True, False),  # most of the change would be rounded away
        ("beside", torch.float32, True, False),
        ("trainable", torch.float32, True, True),
        (None, torch.float32, False, False),
    ],
)
def test_what_becomes_of_adapters(whole, tmp_path, use, dtype, adapters, trained):
    saved = adapter(tmp_path).eval()
    model = load_model(find_policy(tmp_path, base_model=str(whole)), dtype=dtype, adapter=use)
    assert hasattr(model, "peft_config") == adapters
    assert any(parameter.requires_grad for parameter in model.parameters()) == trained
    assert trained or not model.training
    ids = torch.tensor([[1, 5, 9, 200]])
    with torch.no_grad():
        expected = (saved if use else tiny_model().eval())(ids).logits
        tolerance = 1e-5 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(
            model.eval()(ids).logits.float(), expected, atol=tolerance, rtol=tolerance
        )


def test_several_adapters_of_one_policy(whole, tmp_path):
    names = ("one", "two")
    for name in names:
        adapter(tmp_path / name)
    files = PolicyFiles(
        name="soup",
        model=str(whole),
        tokenizer=str(whole),
        adapters={name: str(tmp_path / name) for name in names},
    )
    model = load_model(files, dtype=torch.float32, adapter="beside")
    assert tuple(model.peft_config) == names


def test_a_second_adapter_stays_beside_the_first(tmp_path):
    for name in ("one", "two"):
        adapter(tmp_path / name)
    model = load_adapter(tiny_model(), tmp_path / "one", name="one")
    assert set(load_adapter(model, tmp_path / "two", name="two").peft_config) == {"one", "two"}


def test_an_adapter_of_another_model_is_refused(tmp_path):
    adapter(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded: RuntimeError"):
        load_adapter(tiny_model(hidden_size=16), tmp_path)
