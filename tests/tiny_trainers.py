"""Trainers of a tiny policy on two cheap rewards, for tests."""

import torch
from datasets import Dataset
from peft import LoraConfig

from moodpo.training.config import MOODPOConfig
from moodpo.training.trainer import MOODPOTrainer
from tiny_policies import tiny_model, tiny_tokenizer

WORDS = ("ab", "cde", "f", "ghij", "kl", "m", "nop", "q", "rs", "tuvw", "xyz", "done")
PROMPTS = [f"Say {word} please." for word in WORDS]


def vowels(completions, **_):
    return [sum(c in "aeiou" for c in text) / max(len(text), 1) for text in completions]


def capitals(completions, **_):
    return [sum(c.isupper() for c in text) / max(len(text), 1) for text in completions]


def config(folder, **settings):
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_new_tokens": 12,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "calibration_prompts": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return MOODPOConfig(output_dir=str(folder), **{**defaults, **settings})


def make_trainer(folder, *, rewards=(vowels, capitals), lora=False, prompts=PROMPTS, **settings):
    kwargs = {}
    if lora:
        kwargs["peft_config"] = LoraConfig(
            r=4, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    tokenizer = settings.pop("tokenizer", None) or tiny_tokenizer()
    for name in ("sweep", "conditioner", "start", "base", "eval_dataset", "ref_model", "callbacks"):
        if name in settings:
            kwargs[name] = settings.pop(name)
    return MOODPOTrainer(
        tiny_model(),
        reward_funcs=list(rewards),
        args=config(folder, **settings),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        **kwargs,
    )


def parameters(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], **tolerance)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
