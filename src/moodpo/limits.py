"""Ranges of numeric settings, checked without importing torch, so that a typo costs no wait."""

from __future__ import annotations

import math
from collections.abc import Mapping

from moodpo.errors import ConfigError

__all__ = ["MAX_NEW_TOKENS", "MAX_PROMPT_LENGTH", "RANGES", "check_ranges"]

MAX_PROMPT_LENGTH, MAX_NEW_TOKENS = 512, 128  # tokens, by default

RANGES: Mapping[str, tuple[float, float | None]] = {
    "per_device_train_batch_size": (1, None),
    "per_device_eval_batch_size": (1, None),
    "gradient_accumulation_steps": (1, None),
    "max_new_tokens": (1, None),
    "min_new_tokens": (0, None),
    "max_prompt_length": (1, None),
    "top_k": (0, None),
    "top_p": (1e-6, 1),
    "temperature": (1e-4, None),
    "generation_batch_size": (1, None),
    "reward_batch_size": (1, None),
    "calibration_prompts": (2, None),
    "beta": (1e-8, None),
    "corner_probability": (0, 1),
    "exploration": (0, 1),
    "num_generations": (2, None),
    "weights_per_prompt": (1, None),
    "num_relabels": (1, None),
    "relabel_min_importance": (0, 1),
    "contrastive_coefficient": (0, None),
    "warmup_steps_sft": (0, None),
    "pair_fraction": (1e-3, 1),
    "tokens_per_pass": (1, None),
    "label_smoothing": (0, 0.4999),
    "label_temperature": (0, None),
    "rpo_alpha": (0, None),
    "log_completions": (0, None),
    "learning_rate": (0, 100),
    "weight_decay": (0, None),
    "max_grad_norm": (0, None),
    "warmup_ratio": (0, 1),
    "warmup_steps": (0, None),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, None),
    "neftune_noise_alpha": (0, 100),  # 5 to 15 are in use
    "num_train_epochs": (1e-6, None),
    "max_steps": (-1, None),
    "logging_steps": (0, None),
    "save_steps": (1e-6, None),
    "eval_steps": (1e-6, None),
    "save_total_limit": (1, None),
    "seed": (0, 2**32 - 1),  # what numpy's generator takes
    "data_seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, None),
}
"""Smallest and largest value of each setting; None is any finite number."""


def check_ranges(values: Mapping[str, float | None]) -> None:
    """Refuses the first setting that is out of its range.

    Args:
        values: Any settings by name; None and those without a range are not looked at.

    Raises:
        ConfigError: Naming the setting, its range and what was given. NaN and infinities are in no
            range.
    """
    ranges = dict(RANGES)
    if "max_new_tokens" in values:
        ranges["min_new_tokens"] = (0, values["max_new_tokens"])
    for name, (low, high) in ranges.items():
        value = values.get(name)
        if value is None:
            continue
        if not low <= value <= (math.inf if high is None else high) or math.isinf(value):
            upper = "" if high is None else f" and at most {high:.10g}"
            upper += " and finite" if high is None and value == math.inf else ""
            raise ConfigError(f"{name} must be at least {low:g}{upper}; got {value}.")
