"""Sweeps of a policy in training: a stand-in trainer around a tiny model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from moodpo.conditioning.instruction import Conditioner
from moodpo.evaluation import during
from moodpo.evaluation.during import evaluate_trained, policy_in_training, sweep_during
from moodpo.evaluation.front import front_hypervolume
from moodpo.generation.base import SamplingConfig
from moodpo.rewards import RewardPanel, load_rewards
from moodpo.rewards.normalize import Normalizer
from tiny_policies import tiny_model, tiny_tokenizer

NAMES = ("letters", "capitals")
DATA = Dataset.from_dict({"prompt": [f"Say {n}" for n in range(6)], "place": range(6)})


def letters(completions, place, **_):
    assert len(place) == len(completions)  # columns come along
    return [float(sum(c.isalpha() for c in text)) for text in completions]


def capitals(completions, **_):
    return [float(sum(c.isupper() for c in text)) for text in completions]


@pytest.fixture
def trainer(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return SimpleNamespace(
        model=get_peft_model(tiny_model(), config).eval(),
        collector=SimpleNamespace(
            tokenizer=tiny_tokenizer(),
            conditioner=Conditioner(objectives=NAMES),
            sampling=SamplingConfig(max_new_tokens=6),
            panel=RewardPanel(load_rewards([letters, capitals])),
        ),
        args=SimpleNamespace(
            output_dir=str(tmp_path / "run"),
            generation_batch_size=8,
            bf16=False,
            seed=3,
            reward_normalization="calibrate",
        ),
        normalizer=Normalizer("calibrate", 2),
        manifest=lambda: SimpleNamespace(lineage=({"path": "iter1"},), base_model={"path": "sft"}),
    )


@pytest.fixture
def swept(monkeypatch):
    """Results of the sweeps that ran."""
    results = []

    def kept(run):
        return lambda *args, **options: results.append(run(*args, **options)) or results[-1]

    for name in ("run_sweep", "evaluate_policy"):
        monkeypatch.setattr(during, name, kept(getattr(during, name)))
    return results


def test_the_policy_is_the_trainers_own_model(trainer):
    policy = policy_in_training(trainer)
    assert policy.model is trainer.model
    described = policy.describe()
    assert described["name"] == "run"
    assert described["kind"] == "adapter"
    assert described["lineage"] == [{"path": "iter1"}]


def test_sweeps_during_training_and_after_it_ask_for_the_same_weights(trainer, swept):
    sweep_during(DATA, num_prompts=2, levels=3)(trainer)
    after = evaluate_trained(trainer, DATA, num_prompts=2, levels=3, data_source="file")
    assert np.array_equal(swept[0].weights, after.weights)
    assert swept[0].prompts == after.prompts == ("Say 0", "Say 3")
    assert swept[0].rewards.tolist() == after.rewards.tolist()
    assert after.baseline.name == "base model"
    assert after.metrics
    assert after.data["source"] == "file"


def test_units_are_those_of_the_first_sweep_or_of_calibration(trainer, swept):
    sweep = sweep_during(DATA, num_prompts=3, levels=2)
    first = sweep(trainer)
    trainer.args.seed = 4
    second = sweep(trainer)
    rewards = swept[0].rewards
    mean, std = rewards.mean(axis=(0, 1)), rewards.std(axis=(0, 1))
    for measures, result in zip((first, second), swept, strict=True):
        volume = front_hypervolume(result.points, mean=mean, std=std, reference_point=[-1.0, -1.0])
        assert measures["hypervolume"] == pytest.approx(volume)
        assert measures.keys() >= {"steerability", "steerability/letters"}
    trainer.normalizer.calibrate(torch.randn(20, 2))
    fresh = sweep_during(DATA, num_prompts=3, levels=2)(trainer)
    assert fresh["hypervolume"] != pytest.approx(second["hypervolume"])
