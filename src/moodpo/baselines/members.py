"""Members: one online-DPO adapter per weight vector, all on one base model.

The very trainer of the method, with weights held constant: what a member learns differs from what
the method learns in nothing but that it has one trade-off to learn. Relabeling is off, for it
needs weights that vary, and members are not checkpointed: they are short.
Shapes: M members, K objectives, B prompts.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from moodpo._upstream import source_of
from moodpo.baselines.base import BaselinePolicy, Silent, make_record
from moodpo.conditioning.instruction import Conditioner
from moodpo.core.seeds import derive_seed
from moodpo.errors import ConfigError
from moodpo.generation.base import SamplingConfig
from moodpo.generation.hf import HFGenerator
from moodpo.models import adapters
from moodpo.models.load import load_given
from moodpo.records import PromptBatch, RolloutBatch
from moodpo.rewards import RewardPanel, check_data, load_rewards
from moodpo.rewards.normalize import Normalizer
from moodpo.training.config import MOODPOConfig
from moodpo.training.datasets import check_datasets, check_model_lengths, fit_dataset
from moodpo.training.draws import Draw
from moodpo.training.parallel import collate_prompts
from moodpo.training.rollout import NUM_COMPLETIONS, RolloutCollector
from moodpo.training.trainer import MOODPOTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Counted",
    "Setup",
    "add_adapter",
    "base_rollouts",
    "constant_draw",
    "cyclic_draw",
    "member_name",
    "silenced",
    "train_members",
]

ROLLOUT_PROMPTS = 64  # prompts of one rollout of the base model


P = TypeVar("P", bound=BaselinePolicy)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every baseline is trained with.

    Attributes:
        model: The base model, without adapters; adapters are added to it in place.
        tokenizer: The model's.
        panel: All rewards.
        args: As for the method itself; see `training.config`.
        train_dataset: Rows with a `prompt` and further columns.
        peft_config: Of every adapter.
        conditioner: Names the objectives and frames prompts.
        base_model: Path or id of the model.
        normalizer: Fitted reward scales to share with other methods; own ones when None.
        callbacks: Of every trainer, as in `transformers.Trainer`.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    panel: RewardPanel
    args: MOODPOConfig
    train_dataset: Any
    peft_config: Any
    conditioner: Conditioner
    base_model: str | None
    normalizer: Normalizer | None = None
    callbacks: Sequence[Any] = ()

    @classmethod
    def of(
        cls,
        model: str | nn.Module,
        *,
        reward_funcs: Sequence[Any],
        args: MOODPOConfig,
        train_dataset: Any,
        peft_config: Any,
        processing_class: PreTrainedTokenizerBase | None = None,
        conditioner: Conditioner | None = None,
        base: str | None = None,
        normalizer: Normalizer | None = None,
        callbacks: Sequence[Any] = (),
    ) -> Setup:
        """Loads what is named by a path, and checks what does not fit.

        Args:
            model: A causal language model, or its path or Hub id.
            reward_funcs: At least two, as for `MOODPOTrainer`.
            args: The settings of each trainer.
            train_dataset: As for `MOODPOTrainer`, which drops and cuts the same prompts.
            peft_config: Of every adapter.
            processing_class: The tokenizer; the model's own by default.
            conditioner: As for `MOODPOTrainer`.
            base: Path or id of the model; its own name by default.
            normalizer: Fitted reward scales to share with other methods.
            callbacks: Of every trainer.

        Raises:
            ConfigError: If the model carries adapters already, or settings do not fit it.
            DataError: If there are no prompts, or they cannot be used.
            RewardSpecError: If a reward is not one.
        """
        if hasattr(model, "peft_config"):
            raise ConfigError(
                "A baseline is trained on the base model, but this one carries an adapter. Pass "
                "the model under it (model.unload())."
            )
        datasets = check_datasets(args, train_dataset, None)
        check_data(reward_funcs, *datasets)
        loaded, tokenizer = load_given(model, processing_class)
        check_model_lengths(loaded, args)
        rewards = load_rewards(
            list(reward_funcs), device=args.device, batch_size=args.reward_batch_size
        )
        panel = RewardPanel(rewards)
        conditioner = conditioner or args.make_conditioner(panel.names)
        return cls(
            model=loaded.to(args.device),
            tokenizer=tokenizer,
            panel=panel,
            args=args,
            train_dataset=fit_dataset(datasets[0], conditioner, tokenizer, args),
            peft_config=peft_config,
            conditioner=conditioner,
            base_model=base or source_of(loaded),
            normalizer=normalizer,
            callbacks=tuple(callbacks),
        )

    @property
    def sampling(self) -> SamplingConfig:
        """How completions are sampled."""
        return self.args.sampling

    @property
    def dtype(self) -> torch.dtype | None:
        """Half precision to sample in, None for that of the weights."""
        return torch.bfloat16 if self.args.bf16 else None

    def policy(
        self, of: type[P], model: nn.Module, *, adapters: Sequence[str], **details: Any
    ) -> P:
        """What was trained, as a policy with a record.

        Args:
            of: Its class.
            model: The PEFT model that carries the adapters.
            adapters: Their names.
            **details: Other fields of its `BaselineRecord`.
        """
        record = make_record(
            of.kind,
            self.conditioner,
            sampling=self.sampling,
            base_model=self.base_model,
            rewards=tuple(self.panel.describe()),
            adapters=tuple(adapters),
            **details,
        )
        size = self.args.generation_batch_size
        return of(model, self.tokenizer, record, generation_batch_size=size, dtype=self.dtype)

    def collector(self, conditioner: Conditioner, draw: Draw) -> RolloutCollector:
        """The rollout of the base model, outside of any trainer."""
        return RolloutCollector(
            conditioner=conditioner,
            tokenizer=self.tokenizer,
            generator=HFGenerator.of(
                self.model,
                self.tokenizer,
                generation_batch_size=self.args.generation_batch_size,
                dtype=self.dtype,
            ),
            panel=self.panel,
            sampling=self.sampling,
            draw=draw,
        )


class Counted:
    """A `weight_sampler` that counts for how many prompts it drew: how much was sampled.

    Args:
        draw: What draws.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self.prompts = 0

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """The weights `[B, K]` of B seeds."""
        self.prompts += len(seeds)
        return self._draw(seeds)


def constant_draw(weights: Sequence[float]) -> Draw:
    """A `weight_sampler` that always draws the same weights.

    Args:
        weights: K values on the simplex.

    Returns:
        A function of B seeds whose answer is `[B, K]`.
    """
    return lambda seeds: torch.tensor([list(weights)] * len(seeds))


def cyclic_draw(weights: Tensor) -> Draw:
    """A `weight_sampler` that draws one of M weight vectors, each as often.

    Args:
        weights: `[M, K]`.

    Returns:
        A function of B seeds whose answer is `[B, K]`; row i depends on seed i alone.
    """
    return lambda seeds: weights[torch.tensor([seed % len(weights) for seed in seeds])]


def base_rollouts(
    setup: Setup, collector: RolloutCollector, *, prompts: int, key: tuple[int | str, ...]
) -> Iterator[RolloutBatch]:
    """Scored pairs of completions of the base model, on shuffled training prompts.

    Args:
        setup: Gives the prompts.
        collector: From `Setup.collector`.
        prompts: How many, two completions each; the data are repeated where they are fewer.
        key: What makes these rollouts differ from others: (seed, stream).

    Yields:
        Rollouts of at most 64 prompts, rewards raw.
    """
    places = itertools.islice(_shuffled(len(setup.train_dataset), derive_seed(*key)), prompts)
    position = 0
    while chunk := list(itertools.islice(places, ROLLOUT_PROMPTS)):
        rows = [setup.train_dataset[place] for place in chunk]
        numbers = range(position, position + len(rows))
        batch = PromptBatch(indices=numbers, **collate_prompts(rows))
        position += len(rows)
        disable = getattr(setup.model, "disable_adapter", nullcontext)
        with disable():
            yield collector.collect(batch, key=key)


def train_members(
    setup: Setup, weights: Tensor, *, instructed: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Trains one adapter per weight vector, from the same initial values and on the same prompts.

    Args:
        setup: Everything but the weights.
        weights: `[M, K]` on the simplex.
        instructed: Whether each member reads its weights as an instruction, always the same one.

    Returns:
        The PEFT model that carries M adapters, named by `member_name`, and what training took:
        `completions`, `steps` (of all members together) and `seconds`.

    Raises:
        MOODPOError: As `MOODPOTrainer`.
    """
    started = time.perf_counter()
    conditioner = setup.conditioner if instructed else silenced(setup.conditioner)
    normalizer, calibration = _normalizer(setup, conditioner, weights)
    model, steps, completions = setup.model, 0, calibration
    for index, row in enumerate(weights.tolist()):
        name, draw = member_name(index), Counted(constant_draw(row))
        model = add_adapter(
            model,
            setup.peft_config,
            name,
            seed=setup.args.seed,
            dropout=not setup.args.disable_dropout,
        )
        trainer = MOODPOTrainer(
            model,
            reward_funcs=setup.panel.rewards,
            args=_member_args(setup.args, name),
            train_dataset=setup.train_dataset,
            processing_class=setup.tokenizer,
            conditioner=conditioner,
            weight_sampler=draw,
            base=setup.base_model,
            callbacks=list(setup.callbacks),
        )
        if normalizer is not None:
            trainer.normalizer = normalizer
        trainer.train()
        # Off comes the mixed-precision wrapper: the next trainer brings its own.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        steps += trainer.state.global_step
        completions += draw.prompts * trainer.args.world_size * NUM_COMPLETIONS
    seconds = time.perf_counter() - started
    return model, {"completions": completions, "steps": steps, "seconds": round(seconds, 3)}


def add_adapter(
    model: nn.Module, peft_config: Any, name: str, *, seed: int, dropout: bool = True
) -> nn.Module:
    """Adds a fresh adapter and makes it the one that is trained.

    Args:
        model: The base model, or a PEFT model around it.
        peft_config: Copied: PEFT writes into it.
        name: Of the adapter.
        seed: Of its initial values. PEFT draws them from the global generator, whose state is
            put back.
        dropout: Whether the adapter keeps its dropout.

    Returns:
        The PEFT model.

    Raises:
        ConfigError: If the adapter does not fit the model.
    """
    config = copy.deepcopy(peft_config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = adapters.add_adapter(model, config, dropout=dropout, name=name)
    model.set_adapter(name)  # type: ignore[operator]
    return model


def member_name(index: int) -> str:
    """The adapter's name of a member; an objective's own name may hold a dot, PEFT's may not."""
    return f"member-{index}"


def _normalizer(
    setup: Setup, conditioner: Conditioner, weights: Tensor
) -> tuple[Normalizer | None, int]:
    """One scale of rewards for all members, and how many completions it took.

    Calibrated on the base model under all members' weights alike: a scale of its own would give
    each member other trade-offs than its weights say.
    """
    args = setup.args
    if setup.normalizer is not None or args.reward_normalization != "calibrate":
        return setup.normalizer, 0
    normalizer = Normalizer("calibrate", len(conditioner.objectives))
    collector = setup.collector(conditioner, cyclic_draw(weights))
    prompts = min(args.calibration_prompts, len(setup.train_dataset))
    rollouts = base_rollouts(setup, collector, prompts=prompts, key=(args.seed, "calibrate"))
    normalizer.calibrate(torch.cat([rollout.rewards.flatten(0, 2) for rollout in rollouts]))
    return normalizer, prompts * NUM_COMPLETIONS


def _member_args(args: MOODPOConfig, name: str) -> MOODPOConfig:
    own = copy.copy(args)
    own.relabel = "none"  # there is one weight vector
    own.num_generations, own.weights_per_prompt = NUM_COMPLETIONS, 1
    own.save_strategy = "no"
    own.output_dir = f"{args.output_dir}/{name}"
    return own


def silenced(conditioner: Conditioner) -> Conditioner:
    """The same conditioner, but for the instruction, which it does not write."""
    return Silent.from_dict(conditioner.to_dict())


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Places 0 to count - 1 in another order every time around, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
