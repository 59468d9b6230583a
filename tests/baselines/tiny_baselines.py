"""Tiny baselines: a random base model with random adapters, made without training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from moodpo.baselines.base import make_record
from moodpo.baselines.members import member_name
from moodpo.conditioning.instruction import Conditioner
from moodpo.generation.base import SamplingConfig
from moodpo.records import Answer
from moodpo.training.config import MOODPOConfig
from tiny_policies import save_tiny_policy, tiny_tokenizer

NAMES = ("vowels", "capitals")
WORDS = ("ab", "cde", "f", "ghij", "kl", "m")
PROMPTS = [f"Say {word} please." for word in WORDS]
GREEDY = SamplingConfig(max_new_tokens=10, temperature=0.0)
SAMPLED = SamplingConfig(max_new_tokens=10)


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


def capitals(completions: list[str], **_: Any) -> list[float]:
    return [sum(c.isupper() for c in text) / max(len(text), 1) for text in completions]


def lora(**changes: Any) -> LoraConfig:
    """Plain LoRA whose product is large enough to matter."""
    plain = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
    return LoraConfig(task_type="CAUSAL_LM", **{**plain, **changes})


def config(folder: Path, **settings: Any) -> MOODPOConfig:
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "max_new_tokens": 8,
        "learning_rate": 3e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "calibration_prompts": 6,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return MOODPOConfig(output_dir=str(folder), **{**defaults, **settings})


def load_base(path: Path) -> Any:
    """The saved tiny policy's model, which knows where it came from."""
    if not path.is_dir():
        save_tiny_policy(path)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    """What every baseline is trained with."""
    return {
        "reward_funcs": [vowels, capitals],
        "args": changes.pop("args", None) or config(folder),
        "train_dataset": Dataset.from_dict({"prompt": PROMPTS}),
        "peft_config": lora(),
        "processing_class": tiny_tokenizer(),
        **changes,
    }


def random_members(folder: Path, cls: Any, *, peft_config: Any = None, count: int = 2, **details):
    """A baseline of random adapters on a saved base model, as if they had been trained."""
    model = load_base(folder / "base")
    with torch.random.fork_rng():
        for index in range(count):
            torch.manual_seed(index + 1)
            made = copy.deepcopy(peft_config or lora())
            made.init_lora_weights = False  # both factors random: the adapter does something
            name = member_name(index)
            if index == 0:
                model = get_peft_model(model, made, adapter_name=name)
            else:
                model.add_adapter(name, made)
    record = make_record(
        cls.kind,
        Conditioner(objectives=NAMES),
        sampling=GREEDY,
        base_model=str(folder / "base"),
        adapters=tuple(map(member_name, range(count))),
        details=details,
    )
    return cls(model, tiny_tokenizer(), record)


def ask(
    policy: Any, *weights: tuple[float, ...], sampling: SamplingConfig = GREEDY
) -> list[Answer]:
    """Answers to as many prompts as there are weights."""
    return policy.sample(
        PROMPTS[: len(weights)],
        torch.tensor(weights),
        seeds=range(len(weights)),
        sampling=sampling,
    )
