"""Settings: every setting of ours, declared once; imports no torch, so that a typo costs no wait.

A field says its default, its range or choices, its help, its room on the help page, and whether
`moodpo.json` records it. Flags, checks, help and the manifest all read the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from moodpo.choices import LOSS_TYPES, NORMALIZATIONS, RELABELINGS, SCALARIZATIONS
from moodpo.conditioning.instruction import DEFAULT_FORMAT, WEIGHT_FORMATS
from moodpo.errors import ConfigError
from moodpo.limits import check_range
from moodpo.removed import refuse_removed

__all__ = ["Settings", "check_choices", "check_ranges", "ranges", "recorded_settings"]

ROOMS = ("rollout", "weights", "rewards", "loss", "logs")


def setting(
    room: str,
    default: Any,
    help_text: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] = (),
    record: str | None = None,
) -> Any:
    """A field of `Settings`.

    Args:
        room: Where the help page shows it.
        default: Its default; a list is copied for each run.
        help_text: One sentence.
        at_least: The smallest number that works; None where it is no number.
        at_most: The largest; None is any finite number.
        choices: All values that work, where they are names.
        record: The entry of `moodpo.json` that keeps it: `sampling` or `training`.
    """
    metadata: dict[str, Any] = {"help": help_text, "room": room, "record": record}
    if at_least is not None:
        metadata["range"] = (at_least, at_most)
    if choices:
        metadata["choices"] = list(choices)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Settings:
    """What `MOODPOConfig` has on top of `transformers.TrainingArguments`, or with another default.

    Each field's help is its documentation; `moodpo train --help` prints them by room.
    """

    learning_rate: float = setting(
        "trainer",
        5e-7,
        "Initial learning rate of the optimizer.",
        at_least=0,
        at_most=100,
        record="training",
    )
    logging_steps: float = setting(
        "trainer",
        10,
        "Log every so many optimizer steps, or that fraction of all steps.",
        at_least=0,
    )
    remove_unused_columns: bool | None = setting(
        "trainer", False, "Kept False: reward functions may read any column."
    )
    dataloader_pin_memory: bool = setting(
        "trainer", False, "Kept False: the loader yields text, and text cannot be pinned."
    )

    # Rollout
    max_prompt_length: int = setting(
        "rollout",
        512,
        "Longest conditioned prompt in tokens, with its instruction.",
        at_least=1,
        record="sampling",
    )
    prompt_overflow: str = setting(
        "rollout",
        "drop",
        "What to do with prompts over the limit: drop them, or truncate the user's text (never "
        "the weight instruction).",
        choices=("drop", "truncate"),
    )
    max_new_tokens: int = setting(
        "rollout", 128, "Longest completion in tokens.", at_least=1, record="sampling"
    )
    min_new_tokens: int = setting(
        "rollout", 0, "Shortest completion in tokens.", at_least=0, record="sampling"
    )
    temperature: float = setting(
        "rollout", 1.0, "Sampling temperature, above 0.", at_least=1e-4, record="sampling"
    )
    top_p: float = setting(
        "rollout",
        1.0,
        "Nucleus sampling mass; 1 samples from everything.",
        at_least=1e-6,
        at_most=1,
        record="sampling",
    )
    top_k: int = setting(
        "rollout",
        0,
        "Sample among the k likeliest tokens; 0 is off.",
        at_least=0,
        record="sampling",
    )
    generation_batch_size: int = setting(
        "rollout", 64, "Sequences that are sampled at once, on each device.", at_least=1
    )
    num_generations: int = setting(
        "rollout",
        2,
        "Completions of each prompt in all; each weight vector trains the best against the worst "
        "of them.",
        at_least=2,
        record="training",
    )
    weights_per_prompt: int = setting(
        "rollout",
        1,
        "Weight vectors that each prompt is sampled under, drawn with their opposites; a divisor "
        "of num_generations.",
        at_least=1,
        record="training",
    )

    # Weights and conditioning
    concentration: list[float] = setting(
        "weights",
        [1.0],
        "Dirichlet concentration of the sampled weights, one value or one per objective; 1 is "
        "uniform, lower favors corners.",
        record="training",
    )
    weight_format: str = setting(
        "weights",
        DEFAULT_FORMAT,
        "How weights are written into the system instruction.",
        choices=WEIGHT_FORMATS,
    )
    instruction_template: str | None = setting(
        "weights",
        None,
        "Your own weight instruction; {weights} stands for all weights, {NAME} for one.",
    )
    chat_template_kwargs: dict[str, Any] | str | None = setting(
        "weights",
        None,
        "Values for variables of the policy's chat template, as JSON, such as "
        '{"enable_thinking": false}; moodpo.json keeps them for all who ask the policy later.',
    )
    scalarization: str = setting(
        "weights",
        "linear",
        "How K rewards become one utility: linear, or chebyshev for concave fronts.",
        choices=SCALARIZATIONS,
    )

    # Rewards
    reward_batch_size: int = setting(
        "rewards", 16, "Texts that a reward model scores at once.", at_least=1
    )
    reward_normalization: str = setting(
        "rewards",
        "calibrate",
        "Scale of each objective: none, running (all rewards so far), or calibrate (z-score on "
        "the reference's own samples before step 1).",
        choices=NORMALIZATIONS,
    )
    calibration_prompts: int = setting(
        "rewards",
        64,
        "Prompts sampled twice each for reward_normalization=calibrate.",
        at_least=2,
    )

    # Preference learning
    beta: float = setting(
        "loss",
        0.1,
        "Strength of the pull toward the reference, per nat.",
        at_least=1e-8,
        record="training",
    )
    loss_type: str = setting(
        "loss", "sigmoid", "Loss of the DPO family.", choices=LOSS_TYPES, record="training"
    )
    label_smoothing: float = setting(
        "loss",
        0.0,
        "Assumed fraction of flipped preferences: conservative DPO with sigmoid, unbiased with "
        "robust; below 0.5.",
        at_least=0,
        at_most=0.4999,
        record="training",
    )
    label_temperature: float = setting(
        "loss",
        0.0,
        "Label pairs softly: the better is chosen with probability σ(utility gap / temperature), "
        "so that weights in between ask for answers in between; 0 is one winner, as published.",
        at_least=0,
        record="training",
    )
    rpo_alpha: float = setting(
        "loss",
        0.0,
        "Weight of the chosen completion's negative log-likelihood per token, beside the "
        "preference: a margin alone may grow while both completions become unlikely; 0 is off.",
        at_least=0,
        record="training",
    )
    relabel: str = setting(
        "loss",
        "antithetic",
        "Train each prompt's completions also under weights they were not sampled under, with "
        "their own winner there: none, or antithetic (the opposite weights).",
        choices=RELABELINGS,
        record="training",
    )
    reference: str = setting(
        "loss",
        "base",
        "What the policy is held close to: base (the SFT model), initial (the policy at step 0), "
        "or a path to an adapter or model.",
    )
    disable_dropout: bool = setting(
        "loss",
        True,
        "Train without any dropout, the adapter's included, as the reference is computed; False "
        "keeps what the model and lora_dropout say.",
    )

    # Observation
    log_completions: int = setting(
        "logs",
        8,
        "Rows of each log's table of completions, one per prompt and weight vector; 0 writes none.",
        at_least=0,
    )


_INHERITED: Mapping[str, tuple[float, float | None]] = {
    "per_device_train_batch_size": (1, None),
    "per_device_eval_batch_size": (1, None),
    "gradient_accumulation_steps": (1, None),
    "weight_decay": (0, None),
    "max_grad_norm": (0, None),
    "warmup_steps": (0, None),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, None),
    "neftune_noise_alpha": (0, 100),  # 5 to 15 are in use
    "num_train_epochs": (1e-6, None),
    "max_steps": (-1, None),
    "save_steps": (1e-6, None),
    "eval_steps": (1e-6, None),
    "save_total_limit": (1, None),
    "seed": (0, 2**32 - 1),  # what numpy's generator takes
    "data_seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, None),
}
"""Smallest and largest value of settings that are the Trainer's; None is any finite number."""

_INHERITED_RECORDS = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps")


def ranges() -> dict[str, tuple[float, float | None]]:
    """Smallest and largest value of every numeric setting, by name."""
    own = {f.name: f.metadata["range"] for f in fields(Settings) if "range" in f.metadata}
    return {**own, **_INHERITED}


def check_ranges(values: Mapping[str, float | None]) -> None:
    """Refuses the first setting that is out of its range.

    Args:
        values: Any settings by name; None and those without a range are not looked at.

    Raises:
        ConfigError: Naming the setting, its range and what was given.
    """
    known = ranges()
    if (longest := values.get("max_new_tokens")) is not None:
        known["min_new_tokens"] = (0, longest)
    for name, (low, high) in known.items():
        check_range(name, values.get(name), low, high)


def check_choices(values: object) -> None:
    """Refuses the first setting that is none of its choices.

    Args:
        values: Has the settings as attributes.

    Raises:
        ConfigError: Naming the setting and its choices; of a choice that earlier versions had, what
            to use instead.
    """
    for each in fields(Settings):
        choices, value = each.metadata.get("choices"), getattr(values, each.name)
        if choices and value not in choices:
            refuse_removed([f"{each.name}={value}"])
            raise ConfigError(f"{each.name} must be one of {', '.join(choices)}; got {value!r}.")


def recorded_settings(values: object, entry: str) -> dict[str, Any]:
    """The settings that an entry of `moodpo.json` keeps.

    Args:
        values: Has the settings as attributes.
        entry: `sampling` or `training`.
    """
    names = [f.name for f in fields(Settings) if f.metadata["record"] == entry]
    names += _INHERITED_RECORDS if entry == "training" else ()
    return {name: getattr(values, name) for name in names}
