"""Tasks as data: what `--exp_type` and the embedded default stand for.

A task brings the prompt's frame and lengths. Nothing here loads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moodpo.errors import ConfigError

__all__ = [
    "EMBEDDED",
    "TASKS",
    "Task",
    "get_task",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Defaults that belong together; every one of them can be overridden by its flag."""

    name: str
    prompt_template: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(name="assistant"),
        Task(
            name="summary",
            # The post is raw for the rewards (post and summary); the policy is told the job.
            prompt_template="Summarize the following post.\n\n{prompt}\n\nSummary:",
            defaults={"max_prompt_length": 640, "max_new_tokens": 48},
        ),
    )
}

EMBEDDED: Mapping[str, Any] = {
    "sft_model_path": "embedded",
    "csv_path": "embedded",
    "eval_csv_path": "embedded",
    "reward_models": ("plainness", "richness"),
    "output_dir": "outputs/default",
    # Asking in sentences steers this model a little before any training; numbers do not.
    "weight_format": "grouped",
    "concentration": (0.5,),
    # Two completions of a prompt under its weights, two under the opposite: what they differ in is
    # what the weights are about. Of all that we measured this steers soonest by far.
    "num_generations": 4,
    "weights_per_prompt": 2,
    "relabel": "none",
    # Many small steps, every pair trained: weights are told apart after so many updates, not so
    # many completions.
    "per_device_train_batch_size": 6,
    "gradient_accumulation_steps": 1,
    "max_steps": 80,
    # Soon every pair is easy to tell, and margins alone grow while answers fall apart. Soft labels
    # end the pull where the utilities say, so that weights in between keep answers in between, and
    # winners have to become likely themselves.
    "label_temperature": 0.25,
    "rpo_alpha": 0.1,
    "max_new_tokens": 28,
    "temperature": 0.8,
    "calibration_prompts": 48,
    "learning_rate": 1e-3,
    # At this rate a policy moves to and fro; the end settles it.
    "lr_scheduler_type": "warmup_stable_decay",
    "lr_scheduler_kwargs": {"num_decay_steps": 24, "decay_type": "linear"},
    "warmup_steps": 3,
    # The upper half of the blocks: the backward pass ends where the adapters do.
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    ),
    "lora_layers_to_transform": tuple(range(15, 30)),
    "logging_steps": 10,
    "save_steps": 40,
    "sweep_weights": 5,
    "sweep_prompts": 84,
}
"""Flags of `moodpo train` without arguments: everything runs offline, on a laptop's CPU."""


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"Unknown exp_type {name!r}. Choose one of {', '.join(TASKS)}.")
    return TASKS[name]
