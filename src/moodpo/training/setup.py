"""Setup: what a run needs before there is a Trainer, from whatever a caller may pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoTokenizer, set_seed

from moodpo.errors import RewardSpecError
from moodpo.kernels.fused_lora import fuse_lora
from moodpo.models.adapters import FreshAdapter, wrap_model
from moodpo.models.load import load_model
from moodpo.models.savable import absolute_folder, prepare_saving
from moodpo.rewards import Reward, RewardPanel, load_rewards
from moodpo.training.config import MOODPOConfig
from moodpo.training.datasets import check_model_lengths
from moodpo.training.reference import known_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Ready", "load_panel", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A model that can be trained and saved."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    base: str | None  # path or id of the model under the adapter
    start: str | None  # checkpoint that the trained parameters come from
    sft: str | None  # path or id of the SFT model, where it is known
    fresh: FreshAdapter | None  # what a new adapter did to the model under it


def prepare(
    model: str | PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    peft_config: Any,
    args: MOODPOConfig,
    *,
    base: str | None,
    start: str | None,
) -> Ready:
    """Loads, checks, wraps and speeds up a model; see `MOODPOTrainer` for the arguments.

    Raises:
        ConfigError: If it cannot be trained as `args` say, or not be saved.
    """
    if isinstance(model, str):
        model = load_model(model, dtype=torch.float32)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)  # type: ignore[union-attr]
    check_model_lengths(model, args)
    sft = absolute_folder(known_base(model, base, start))
    base = absolute_folder(base or getattr(model.config, "_name_or_path", None) or None)
    fresh = None
    if peft_config is not None:
        set_seed(args.seed)  # a fresh adapter is drawn from the global generator
        model, fresh = wrap_model(model, peft_config, dropout=not args.disable_dropout)
    prepare_saving(model, tokenizer, base=base)
    if args.activation_checkpointing and args.activation_checkpointing_kwargs is None:
        # Reentrant checkpoints need inputs with gradients, which a frozen embedding has not.
        args.activation_checkpointing_kwargs = {"use_reentrant": False}
    fuse_lora(model)
    return Ready(
        model=model,
        tokenizer=tokenizer,
        base=base,
        start=absolute_folder(start),
        sft=sft,
        fresh=fresh,
    )


def load_panel(
    reward_funcs: Sequence[str | PreTrainedModel | Callable[..., Any] | Reward],
    args: MOODPOConfig,
) -> RewardPanel:
    """The rewards of a run.

    Raises:
        RewardSpecError: If one is none, or there are fewer than two.
    """
    rewards = load_rewards(
        list(reward_funcs), device=args.device, batch_size=args.reward_batch_size
    )
    if len(rewards) < 2:
        raise RewardSpecError(
            f"Multi-objective training needs at least two rewards; got {len(rewards)}. Pass "
            "reward_funcs=[first, second]."
        )
    return RewardPanel(rewards)
