"""`MOODPOConfig`: every setting of a training run, one sentence each, checked at the door.

Extends `transformers.TrainingArguments`, so that every flag of the Trainer keeps its name and
meaning. Knows nothing of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from transformers import TrainingArguments

from moodpo.conditioning.instruction import DEFAULT_FORMAT, WEIGHT_FORMATS, Conditioner
from moodpo.core.loss import LOSS_TYPES
from moodpo.core.scalarization import SCALARIZATIONS
from moodpo.errors import ConfigError
from moodpo.limits import MAX_NEW_TOKENS, MAX_PROMPT_LENGTH, RANGES, check_ranges
from moodpo.models.chat_templates import read_template_kwargs
from moodpo.rewards.words import words_of
from moodpo.training.inherited import check_inherited, check_launch
from moodpo.training.samplers import WEIGHT_SAMPLERS, check_uniform

__all__ = ["NORMALIZATIONS", "PAIRINGS", "RELABELINGS", "MOODPOConfig"]

RELABELINGS = ("none", "antithetic", "fresh")
PAIRINGS = ("scalarize", "per_objective")
NORMALIZATIONS = ("none", "running", "calibrate")


def _setting(room: str, default: Any, help_text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help_text, "room": room, **metadata})


@dataclass
class MOODPOConfig(TrainingArguments):  # type: ignore[misc]
    """Settings of `MOODPOTrainer`, on top of `transformers.TrainingArguments`.

    Each field's help is its documentation; `moodpo train --help` prints them by room.

    Raises:
        ConfigError: From `__post_init__`, naming the setting, the range and the remedy.
    """

    learning_rate: float = _setting("trainer", 5e-7, "Initial learning rate of the optimizer.")
    logging_steps: float = _setting(
        "trainer", 10, "Log every so many optimizer steps, or that fraction of all steps."
    )
    remove_unused_columns: bool | None = _setting(
        "trainer", False, "Kept False: reward functions may read any column."
    )
    dataloader_pin_memory: bool = _setting(
        "trainer", False, "Kept False: the loader yields text, and text cannot be pinned."
    )

    # Rollout
    max_prompt_length: int = _setting(
        "rollout",
        MAX_PROMPT_LENGTH,
        "Longest conditioned prompt in tokens, with its instruction.",
    )
    prompt_overflow: str = _setting(
        "rollout",
        "drop",
        "What to do with prompts over the limit: drop them, or truncate the user's text (never "
        "the weight instruction).",
        choices=["drop", "truncate"],
    )
    max_new_tokens: int = _setting("rollout", MAX_NEW_TOKENS, "Longest completion in tokens.")
    min_new_tokens: int = _setting("rollout", 0, "Shortest completion in tokens.")
    temperature: float = _setting("rollout", 1.0, "Sampling temperature, above 0.")
    top_p: float = _setting("rollout", 1.0, "Nucleus sampling mass; 1 samples from everything.")
    top_k: int = _setting("rollout", 0, "Sample among the k likeliest tokens; 0 is off.")
    generation_batch_size: int = _setting(
        "rollout", 64, "Sequences that are sampled at once, on each device."
    )

    num_generations: int = _setting(
        "rollout",
        2,
        "Completions of each prompt in all; each weight vector trains the best against the worst "
        "of them.",
    )
    weights_per_prompt: int = _setting(
        "rollout",
        1,
        "Weight vectors that each prompt is sampled under, drawn with their opposites; a divisor "
        "of num_generations.",
    )

    async_rollouts: bool = _setting(
        "rollout",
        False,
        "Sample the next step's completions while this step trains, by a copy of the policy that "
        "is one step older; pays where both have something to run on.",
    )
    async_rollout_device: str | None = _setting(
        "rollout",
        None,
        "Device of the copy that samples with async_rollouts, such as cuda:1; by default the "
        "policy's own, where the frozen weights are shared.",
    )

    # Weights and conditioning
    concentration: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={
            "help": "Dirichlet concentration of the sampled weights, one value or one per "
            "objective; 1 is uniform, lower favors corners.",
            "room": "weights",
        },
    )
    weight_sampler: str = _setting(
        "weights",
        "dirichlet",
        "How each prompt's weights are drawn: dirichlet, corners (with some corners), stratified "
        "(evenly over successive prompts), or front (more where rewards move with the weights).",
        choices=list(WEIGHT_SAMPLERS),
    )
    corner_probability: float = _setting(
        "weights", 0.2, "Share of corners with weight_sampler=corners."
    )
    exploration: float = _setting(
        "weights", 0.3, "Share of plain Dirichlet draws with weight_sampler=front."
    )
    weight_format: str = _setting(
        "weights",
        DEFAULT_FORMAT,
        f"How weights are written into the system instruction: {', '.join(WEIGHT_FORMATS)}.",
    )
    instruction_template: str | None = _setting(
        "weights",
        None,
        "Your own weight instruction; {weights} stands for all weights, {NAME} for one.",
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Values for variables of the policy's chat template, as JSON, such as "
            '{"enable_thinking": false}; moodpo.json keeps them for all who ask the policy later.',
            "room": "weights",
        },
    )
    scalarization: str = _setting(
        "weights",
        "linear",
        "How K rewards become one utility: linear, or chebyshev for concave fronts.",
        choices=list(SCALARIZATIONS),
    )

    # Rewards
    reward_batch_size: int = _setting("rewards", 16, "Texts that a reward model scores at once.")
    reward_normalization: str = _setting(
        "rewards",
        "calibrate",
        "Scale of each objective: none, running (all rewards so far), or calibrate (z-score on "
        "the reference's own samples before step 1).",
        choices=list(NORMALIZATIONS),
    )
    calibration_prompts: int = _setting(
        "rewards", 64, "Prompts sampled twice each for reward_normalization=calibrate."
    )

    # Preference learning
    beta: float = _setting("loss", 0.1, "Strength of the pull toward the reference, per nat.")
    loss_type: str = _setting(
        "loss", "sigmoid", "Loss of the DPO family.", choices=list(LOSS_TYPES)
    )
    label_smoothing: float = _setting(
        "loss",
        0.0,
        "Assumed fraction of flipped preferences: conservative DPO with sigmoid, unbiased with "
        "robust; below 0.5.",
    )
    label_temperature: float = _setting(
        "loss",
        0.0,
        "Label pairs softly: the better is chosen with probability σ(utility gap / temperature), "
        "so that weights in between ask for answers in between; 0 is one winner, as published.",
    )
    rpo_alpha: float = _setting(
        "loss",
        0.0,
        "Weight of the chosen completion's negative log-likelihood per token, beside the "
        "preference: a margin alone may grow while both completions become unlikely; 0 is off.",
    )
    relabel: str = _setting(
        "loss",
        "antithetic",
        "Train each prompt's completions also under weights they were not sampled under, with "
        "their own winner there: none, antithetic (the opposite weights), or fresh (further "
        "draws).",
        choices=list(RELABELINGS),
    )
    num_relabels: int = _setting(
        "loss", 1, "How many further weight vectors relabel each prompt's completions."
    )
    relabel_min_importance: float = _setting(
        "loss",
        0.0,
        "Drop relabeled pairs whose completions are less likely under the new weights than under "
        "their own by more than this factor per token (geometric mean); 0 keeps all and costs "
        "nothing.",
    )
    pairing: str = _setting(
        "loss",
        "scalarize",
        "What decides a pair: scalarize (the weighted utility), or per_objective (each objective "
        "votes for its own winner with its weight; two completions only).",
        choices=list(PAIRINGS),
    )
    contrastive_coefficient: float = _setting(
        "loss",
        0.0,
        "Weight of the term that makes a completion likelier under the weights it wins than under "
        "those it loses; 0 is off.",
    )
    warmup_steps_sft: int = _setting(
        "loss",
        0,
        "Start with so many steps of supervised fine-tuning on each labeling's winner.",
    )
    pair_fraction: float = _setting(
        "loss",
        1.0,
        "Train only that fraction of a step's active pairs, those with the widest utility gap; "
        "where sampling is cheaper than training, sample more and train on the clearest.",
    )
    tokens_per_pass: int | None = _setting(
        "loss",
        None,
        "Train pairs of several micro-batches in one forward pass, up to so many tokens; the "
        "gradient is the same. Default: 2048 with activation_checkpointing, which leaves the "
        "memory for it, and otherwise none.",
    )
    reference: str = _setting(
        "loss",
        "base",
        "What the policy is held close to: base (the SFT model), initial (the policy at step 0), "
        "or a path to an adapter or model.",
    )
    disable_dropout: bool = _setting(
        "loss",
        True,
        "Train without any dropout, the adapter's included, as the reference is computed; False "
        "keeps what the model and lora_dropout say.",
    )

    # Observation
    log_completions: int = _setting(
        "logs",
        8,
        "Rows of each log's table of completions, one per prompt and weight vector; 0 writes none.",
    )

    rooms: ClassVar[tuple[str, ...]] = ("rollout", "weights", "rewards", "loss", "logs")

    def __post_init__(self) -> None:
        """Checks ranges and what cannot work, then lets `TrainingArguments` do its own."""
        given: Any = self.concentration
        self.concentration = [float(given)] if isinstance(given, (int, float)) else given
        self.chat_template_kwargs = read_template_kwargs(self.chat_template_kwargs)
        clip: Any = self.max_grad_norm
        # None is no clipping: the Trainer would compare it with 0.
        self.max_grad_norm: float = 0.0 if clip is None else clip
        self._check_ranges()
        self._check_choices()
        self._check_weights()
        self._check_pairs()
        check_inherited(self)
        super().__post_init__()
        check_launch(self)

    def make_conditioner(
        self, objectives: Sequence[str], *, prompt_template: str | None = None
    ) -> Conditioner:
        """What writes preferences into prompts, as these settings say.

        Args:
            objectives: K names, in order.
            prompt_template: Frames the user's text for the policy.

        Raises:
            ConfigError: If a setting names another objective.
        """
        return Conditioner(
            objectives=tuple(objectives),
            **words_of(objectives),
            weight_format=self.weight_format,
            template=self.instruction_template,
            prompt_template=prompt_template,
            chat_template_kwargs=read_template_kwargs(self.chat_template_kwargs),
        )

    def _check_ranges(self) -> None:
        check_ranges({name: getattr(self, name, None) for name in RANGES})
        for name in (f.name for f in fields(self)):
            value = getattr(self, name, None)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name} must be a finite number; got {value}.")
        if self.max_steps == 0:
            raise ConfigError(
                "max_steps must be at least 1, or -1 for num_train_epochs to say how long; got 0."
            )
        if not self.concentration or any(not 0 < v < math.inf for v in self.concentration):
            raise ConfigError(
                f"concentration must be positive, got {self.concentration}. Pass one value or one "
                "per objective; 1 is uniform over the simplex."
            )

    def _check_weights(self) -> None:
        if self.weight_sampler == "stratified":
            check_uniform(self.concentration)

    def _check_pairs(self) -> None:
        if self.num_generations % self.weights_per_prompt:
            raise ConfigError(
                f"num_generations must be a multiple of weights_per_prompt; got "
                f"{self.num_generations} and {self.weights_per_prompt}."
            )
        if self.pairing == "per_objective" and self.num_generations != 2:
            raise ConfigError(
                "pairing=per_objective compares two completions; got "
                f"num_generations={self.num_generations}. Use 2, or pairing=scalarize."
            )
        if self.relabel_min_importance and self.weights_per_prompt > 1:
            raise ConfigError(
                "relabel_min_importance compares new weights with the one vector that a prompt was "
                f"sampled under; got weights_per_prompt={self.weights_per_prompt}. Use 1, or 0 "
                "importance."
            )
        labelings = self.weights_per_prompt + (self.relabel != "none") * self.num_relabels
        if self.contrastive_coefficient and labelings < 2:
            raise ConfigError(
                "contrastive_coefficient compares a prompt's weight vectors, and there is one. "
                "Use relabel=antithetic, or weights_per_prompt=2."
            )

    def _check_choices(self) -> None:
        for setting in fields(self):
            choices = setting.metadata.get("choices")
            if "room" in setting.metadata and choices:
                value = getattr(self, setting.name)
                if value not in choices:
                    raise ConfigError(
                        f"{setting.name} must be one of {', '.join(choices)}; got {value!r}."
                    )
