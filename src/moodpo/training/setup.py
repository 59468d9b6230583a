"""Setup: what a run needs before there is a Trainer, from whatever a caller may pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import set_seed

from moodpo.choices import NormalizerKind
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, RewardSpecError
from moodpo.generation.base import Generator
from moodpo.generation.tokens import padding_token_id
from moodpo.models.adapters import FreshAdapter, wrap_model
from moodpo.models.chat_templates import warn_of_dates
from moodpo.models.fast import fuse_lora
from moodpo.models.load import load_given
from moodpo.models.savable import absolute_folder, prepare_saving
from moodpo.rewards import Reward, RewardPanel, load_rewards
from moodpo.rewards.normalize import Normalizer
from moodpo.training.config import MOODPOConfig
from moodpo.training.datasets import check_model_lengths
from moodpo.training.draws import Draw
from moodpo.training.dropout import Dropouts, warn_of_noise
from moodpo.training.learner import Learner
from moodpo.training.metrics import PhaseClock
from moodpo.training.parallel import Processes
from moodpo.training.paths import find_paths
from moodpo.training.reference import Reference, known_base
from moodpo.training.rollout import RolloutCollector

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Parts", "Ready", "assemble", "load_objectives", "prepare"]

logger = logging.getLogger(__name__)


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
    model, tokenizer = load_given(model, tokenizer)
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


def load_objectives(
    reward_funcs: Sequence[str | PreTrainedModel | Callable[..., Any] | Reward],
    conditioner: Conditioner | None,
    tokenizer: PreTrainedTokenizerBase,
    args: MOODPOConfig,
) -> tuple[RewardPanel, Conditioner]:
    """The rewards of a run, and what writes their weights into prompts.

    Args:
        reward_funcs: K rewards, as `load_rewards` takes them.
        conditioner: By default as `args` and the rewards' names say.
        tokenizer: The policy's.
        args: The settings.

    Raises:
        RewardSpecError: If one is none, or there are fewer than two.
        ConfigError: If the conditioner's objectives are not the rewards.
    """
    rewards = load_rewards(
        list(reward_funcs), device=args.device, batch_size=args.reward_batch_size
    )
    if len(rewards) < 2:
        raise RewardSpecError(
            f"Multi-objective training needs at least two rewards; got {len(rewards)}. Pass "
            "reward_funcs=[first, second]."
        )
    panel = RewardPanel(rewards)
    conditioner = conditioner or args.make_conditioner(panel.names)
    if conditioner.objectives != panel.names:
        raise ConfigError(
            f"The conditioner's objectives {conditioner.objectives} are not the rewards "
            f"{panel.names}. Give both in the same order."
        )
    warn_of_dates(tokenizer, conditioner.chat_template_kwargs)
    return panel, conditioner


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an optimizer step is done with."""

    collector: RolloutCollector
    learner: Learner
    dropouts: Dropouts | None  # to switch off; None leaves them on
    fast_paths: str  # which are taken, in words


def assemble(
    args: MOODPOConfig,
    ready: Ready,
    model: nn.Module,
    *,
    reference: Reference,
    conditioner: Conditioner,
    panel: RewardPanel,
    draw: Draw,
    generator: Generator,
    processes: Processes,
    phase: PhaseClock,
) -> Parts:
    """Puts together what a step is done with, and tries the fast paths.

    Args:
        args: The settings.
        ready: From `prepare`.
        model: The policy where it is trained.
        reference: What it is held close to.
        conditioner: Writes weights into prompts.
        panel: The rewards.
        draw: Draws weights.
        generator: Samples completions.
        processes: Those that share a step.
        phase: Times its phases.
    """
    autocast = processes.accelerator.autocast
    dropouts = Dropouts(model) if args.disable_dropout else None
    if dropouts is not None:
        with autocast(), dropouts.off():
            warn_of_noise(model)
    collector = RolloutCollector(
        conditioner=conditioner,
        tokenizer=ready.tokenizer,
        generator=generator,
        panel=panel,
        sampling=args.sampling,
        draw=draw,
        num_completions=args.num_generations // args.weights_per_prompt,
        weights_per_prompt=args.weights_per_prompt,
        relabel=args.relabel,
        phase=phase,
    )
    paths, of_reference, said = find_paths(
        model, reference, autocast=autocast, gather=processes.gather
    )
    logger.info("Fast paths: %s", said)
    learner = Learner(
        args=args,
        reference=reference,
        normalizer=Normalizer(cast(NormalizerKind, args.reward_normalization), len(panel)),
        encode=collector.encode,
        pad_token_id=padding_token_id(ready.tokenizer, model),
        paths=paths,
        reference_paths=of_reference,
        processes=processes,
        autocast=autocast,
    )
    return Parts(collector=collector, learner=learner, dropouts=dropouts, fast_paths=said)
