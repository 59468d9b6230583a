"""`MOODPOConfig`: all settings of a training run, checked at the door.

`Settings` on top of `transformers.TrainingArguments`, so that every flag of the Trainer keeps its
name and meaning. Knows nothing of the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from transformers import TrainingArguments

from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError
from moodpo.generation.base import SamplingConfig
from moodpo.models.chat_templates import read_template_kwargs
from moodpo.removed import refuse_removed
from moodpo.rewards.words import words_of
from moodpo.training.inherited import check_inherited, check_launch
from moodpo.training.settings import Settings, check_choices, check_ranges, ranges

__all__ = ["MOODPOConfig"]


@dataclass
class MOODPOConfig(Settings, TrainingArguments):  # type: ignore[misc]
    """Settings of `MOODPOTrainer`: `Settings`, on top of `transformers.TrainingArguments`.

    Raises:
        ConfigError: From `__post_init__`, naming the setting, the range and the remedy.
    """

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Refuses what earlier versions had before Python calls it an unexpected argument."""
        refuse_removed(given)
        settings: Self = super().__new__(cls)
        return settings

    def __post_init__(self) -> None:
        """Checks ranges and what cannot work, then lets `TrainingArguments` do its own."""
        given: Any = self.concentration
        self.concentration = [float(given)] if isinstance(given, (int, float)) else given
        self.chat_template_kwargs = read_template_kwargs(self.chat_template_kwargs)
        clip: Any = self.max_grad_norm
        # None is no clipping: the Trainer would compare it with 0.
        self.max_grad_norm: float = 0.0 if clip is None else clip
        check_ranges({name: getattr(self, name, None) for name in ranges()})
        self._check_numbers()
        check_choices(self)
        self._check_combinations()
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

    @property
    def sampling(self) -> SamplingConfig:
        """How completions are sampled."""
        return SamplingConfig(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )

    def _check_numbers(self) -> None:
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

    def _check_combinations(self) -> None:
        if self.num_generations % self.weights_per_prompt:
            raise ConfigError(
                f"num_generations must be a multiple of weights_per_prompt; got "
                f"{self.num_generations} and {self.weights_per_prompt}."
            )
