"""The Python API in one screen: train a steerable policy for a minute, then steer it.

python examples/quickstart.py --max_steps 4
"""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from moodpo import MOODPOConfig, MOODPOTrainer, SteerablePolicy
from moodpo.models.embedded import embedded_policy_path

PROMPTS = ["Tell me about the sea.", "How was your day?", "What is rain?", "Describe a cat."]


def kind(completions: list[str], **columns: object) -> list[float]:
    """A reward is any function from completions to numbers; this one counts kind words."""
    words = ("love", "happy", "great", "wonderful", "beautiful", "!")
    return [float(sum(text.lower().count(word) for word in words)) for text in completions]


def short(completions: list[str], **columns: object) -> list[float]:
    """Fewer words are better, down to five."""
    return [-float(max(5, len(text.split()))) for text in completions]


def main() -> None:
    """Trains, saves, loads and steers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None, help="Any causal language model; SmolLM2 if none.")
    parser.add_argument("--output_dir", default="outputs/quickstart")
    parser.add_argument("--max_steps", type=int, default=4)
    options = parser.parse_args()
    trainer = MOODPOTrainer(
        AutoModelForCausalLM.from_pretrained(
            options.model or embedded_policy_path(), dtype=torch.float32
        ),
        reward_funcs=[kind, short],
        args=MOODPOConfig(
            output_dir=options.output_dir,
            max_steps=options.max_steps,
            per_device_train_batch_size=4,
            max_new_tokens=24,
            learning_rate=3e-4,
            logging_steps=1,
            calibration_prompts=8,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()

    policy = SteerablePolicy.from_pretrained(options.output_dir)
    for weights in ({"kind": 1.0, "short": 0.0}, {"kind": 0.0, "short": 1.0}):
        print(weights, policy.generate(PROMPTS[:2], objective_weights=weights, max_new_tokens=24))


if __name__ == "__main__":
    main()
