"""Inherited settings that cannot do here what they say: refused, never silently ignored.

`transformers.TrainingArguments` is made for one forward pass over tokenized rows with labels. Where
this method has no such rows, labels or pass, a setting of it would change nothing, or fail once
everything is loaded. All others keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from moodpo.errors import ConfigError

__all__ = ["SCRIPT_FLAGS", "UNWORKABLE", "check_inherited", "check_launch", "check_script_flags"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """When a setting is refused, why, and what to do instead."""

    applies: Callable[[Any], bool]
    why: str
    remedy: str = "Leave it out."


def _given(value: Any) -> bool:
    return bool(value)


def _off(value: Any) -> bool:
    return not value


def _lengths(value: Any) -> bool:
    return str(getattr(value, "value", value)) in ("group_by_length", "batch_rebalance")


_NO_LOGITS = "evaluation gives a loss and rewards, and keeps no predictions or labels."
_COMPILED = Refusal(
    _given,
    "rollouts and log-probabilities call parts of the model one by one, which a compiled model "
    "as a whole does not cover.",
)
_SHARDED = "generation needs every parameter whole on each device."

UNWORKABLE: Mapping[str, Refusal] = {
    "train_sampling_strategy": Refusal(
        _lengths,
        "it sorts rows of token ids, and prompts are tokenized after weights are drawn for them.",
        "Use random or sequential.",
    ),
    "length_column_name": Refusal(
        lambda value: value != "length", "it serves train_sampling_strategy=group_by_length alone."
    ),
    "label_smoothing_factor": Refusal(
        _given,
        "it smooths the labels of a cross-entropy, and this loss compares completions.",
        "Use label_smoothing, the assumed fraction of flipped preferences.",
    ),
    "include_num_input_tokens_seen": Refusal(
        lambda value: value not in (False, "no", None),
        "it counts the tokens that a loader yields, and here it yields text.",
        "Leave it out: tokens_per_second and completions/mean_length are logged.",
    ),
    "remove_unused_columns": Refusal(
        _given, "reward functions may read any column, and the model's forward pass reads none."
    ),
    "label_names": Refusal(_given, "prompts have no labels."),
    "include_for_metrics": Refusal(_given, _NO_LOGITS),
    "batch_eval_metrics": Refusal(_given, _NO_LOGITS),
    "eval_do_concat_batches": Refusal(_off, _NO_LOGITS),
    "eval_use_gather_object": Refusal(_given, _NO_LOGITS),
    "average_tokens_across_devices": Refusal(
        _off, "the loss is always averaged over the pairs of all processes."
    ),
    "use_liger_kernel": Refusal(
        _given,
        "its kernels replace the modules whose parts are called here one by one; the vocabulary "
        "head and LoRA run fused already.",
    ),
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "fp16_full_eval": Refusal(
        _given, "it would round the policy's weights for good.", "Compute in half: bf16."
    ),
    "bf16_full_eval": Refusal(
        _given, "it would round the policy's weights for good.", "Compute in half: bf16."
    ),
    "fsdp": Refusal(_given, _SHARDED, "Use plain data parallelism (DDP)."),
    "deepspeed": Refusal(_given, _SHARDED, "Use plain data parallelism (DDP)."),
    "parallelism_config": Refusal(_given, _SHARDED, "Use plain data parallelism (DDP)."),
}
"""Inherited settings by name, and which of their values are refused."""

SCRIPT_FLAGS: Mapping[str, Refusal] = {
    "do_train": Refusal(_off, "`moodpo train` trains.", "Use `moodpo evaluate` to evaluate alone."),
    "do_eval": Refusal(_given, "it says when by eval_strategy.", "Pass --eval_strategy epoch."),
    "do_predict": Refusal(_given, "`moodpo train` predicts nothing.", "Use `moodpo generate`."),
}
"""Flags that transformers leaves to the script: of them, too, none is silently ignored."""


def check_inherited(args: Any) -> None:
    """Refuses inherited settings that cannot work.

    Args:
        args: A `TrainingArguments`.

    Raises:
        ConfigError: Naming the first, why, and the remedy.
    """
    for name, refusal in UNWORKABLE.items():
        _check(name, getattr(args, name, None), refusal)


def check_launch(args: Any) -> None:
    """Refuses what does not fit the device and the processes, once they are known.

    Args:
        args: A `TrainingArguments` after its own checks.

    Raises:
        ConfigError: Naming the setting and the remedy.
    """
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name, None):
            raise ConfigError(
                f"accelerator_config.{name} cannot work here: every process draws its own "
                "prompts, by their place in the whole batch. Leave it out."
            )
    if args.warmup_steps and args.lr_scheduler_type == "constant":
        raise ConfigError(
            f"warmup_steps={args.warmup_steps} cannot work with lr_scheduler_type=constant, which "
            "has no warm-up. Use constant_with_warmup."
        )
    if args.fp16 and args.device.type == "cpu":
        raise ConfigError(
            "fp16 needs a GPU: a CPU trains in float32 or bfloat16. Pass bf16, or leave it out."
        )


def check_script_flags(args: Any, given: Collection[str]) -> None:
    """Refuses flags that a script would read and `moodpo train` does not.

    Args:
        args: A `TrainingArguments`.
        given: Names of the flags that the user gave.

    Raises:
        ConfigError: Naming the first, why, and the remedy.
    """
    for name, refusal in SCRIPT_FLAGS.items():
        if name == "do_eval" and args.eval_strategy != "no":
            continue
        if name in given:
            _check(name, getattr(args, name), refusal)


def _check(name: str, value: Any, refusal: Refusal) -> None:
    if refusal.applies(value):
        shown = getattr(value, "value", value)
        raise ConfigError(f"{name}={shown} cannot work here: {refusal.why} {refusal.remedy}")
