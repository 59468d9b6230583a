"""Prompting alone: the base model, told the weights and never trained.

The least that any steered policy must beat: instruction-tuned models follow weights that are
written in words before they have seen a single reward. Shapes: K objectives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moodpo._upstream import source_of
from moodpo.baselines.base import BaselinePolicy, make_record
from moodpo.baselines.record import BaselineRecord
from moodpo.conditioning.instruction import Conditioner
from moodpo.generation.base import SamplingConfig
from moodpo.models.choice import AdapterChoice, WithoutAdapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PromptedPolicy"]


class PromptedPolicy(BaselinePolicy):
    """The base model under the weight instruction; see `BaselinePolicy` for the arguments."""

    kind = "prompting"
    title = "prompting alone"

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        conditioner: Conditioner,
        *,
        sampling: SamplingConfig,
        base_model: str | None = None,
        rewards: tuple[dict[str, Any], ...] = (),
        generation_batch_size: int = 64,
        dtype: torch.dtype | None = None,
    ) -> PromptedPolicy:
        """The baseline of a loaded model.

        Args:
            model: A causal language model without adapters.
            tokenizer: The model's.
            conditioner: Writes the weights, as for the policy that is compared.
            sampling: How completions are sampled.
            base_model: Path or id of the model; its own name when None.
            rewards: Descriptions of the rewards (`RewardPanel.describe`).
            generation_batch_size: Sequences decoded at once.
            dtype: Half precision to compute in.
        """
        named = base_model or source_of(model)
        record = make_record(
            cls.kind, conditioner, sampling=sampling, base_model=named, rewards=tuple(rewards)
        )
        return cls(
            model, tokenizer, record, generation_batch_size=generation_batch_size, dtype=dtype
        )

    @classmethod
    def written(cls, record: BaselineRecord) -> Conditioner:
        """The weights, as for the policy that is compared."""
        return Conditioner.from_dict(record.conditioning)

    @classmethod
    def chosen(cls, model: nn.Module, record: BaselineRecord) -> AdapterChoice:
        """None: it is the model before training."""
        return WithoutAdapters(model)
