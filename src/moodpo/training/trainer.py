"""`MOODPOTrainer`: Multi-Objective Online DPO on `transformers.Trainer`, through public hooks only.

One rollout serves one whole optimizer step. `get_batch_samples` hands over all prompts of the step
before any policy graph exists, so there is one generate call, one scoring pass per reward and one
reference pass, and the loss is averaged over the active pairs of the step: accumulation and the
number of processes change memory and time, never the gradient.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    set_seed,
)

from moodpo.conditioning.instruction import Conditioner
from moodpo.core.importance import log_importance, matched_log_importance
from moodpo.core.loss import contrastive_loss, imitation_loss, voted_loss
from moodpo.core.pairing import gap_threshold
from moodpo.core.seeds import derive_seed
from moodpo.errors import ConfigError, RewardError, RewardSpecError
from moodpo.files import share_files, write_json
from moodpo.generation.base import Generator, SamplingConfig
from moodpo.generation.hf import HFGenerator
from moodpo.generation.tokens import padding_token_id, token_roles
from moodpo.kernels.fused_lora import fuse_lora
from moodpo.manifest import RunManifest, check_continuation
from moodpo.models.adapters import wrap_model
from moodpo.models.chat_templates import warn_of_dates
from moodpo.models.load import load_model
from moodpo.models.logps import (
    CompletionLogps,
    TokenBatch,
    completion_logps,
)
from moodpo.models.savable import (
    absolute_folder,
    describe_base,
    prepare_saving,
    record_base,
    with_recorded_path,
)
from moodpo.records import PairBatch, PromptBatch, RolloutBatch
from moodpo.rewards import Reward, RewardPanel, check_data, load_rewards
from moodpo.rewards.normalize import Normalizer, NormalizerKind
from moodpo.training.alarms import SignalWatch
from moodpo.training.batching import by_token_budget, spread_over_passes
from moodpo.training.card import write_model_card
from moodpo.training.checkpoints import STATE_NAME, find_checkpoint
from moodpo.training.config import MOODPOConfig
from moodpo.training.datasets import (
    check_batches,
    check_dataset,
    check_datasets,
    check_model_lengths,
    fit_dataset,
)
from moodpo.training.dropout import Dropouts, seeded, warn_of_noise
from moodpo.training.guard import NumberGuard, check_savable_weights
from moodpo.training.interlude import interlude
from moodpo.training.lookahead import Lookahead, replicate
from moodpo.training.metrics import MetricStore, PhaseClock, with_deviations
from moodpo.training.observe import PhaseProgress, append_jsonl, report_samples, sample_rows
from moodpo.training.pairs import (
    PairStatistics,
    build_pairs,
)
from moodpo.training.paths import (
    FastPaths,
    describe_lora,
    find_fast_paths,
    try_own_attention,
)
from moodpo.training.reference import check_agreement, known_base, make_reference
from moodpo.training.rollout import RolloutCollector
from moodpo.training.samplers import WeightSampler, as_sampler, make_sampler
from moodpo.training.schedule import ScheduleCallback
from moodpo.training.sharding import gather_rows, places, share, share_prompts

__all__ = ["MOODPOTrainer"]

logger = logging.getLogger(__name__)

REFERENCE_TOKENS = 16_384  # tokens of one no-grad forward pass
# Tokens of one training pass with activation checkpointing, where one hidden state per token and
# block is kept: fewer bytes than one pair takes without.
CHECKPOINTED_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass needs."""

    tokens: TokenBatch | None  # None when the optimizer step has fewer active pairs than passes
    pairs: PairBatch
    scale: float  # 1 / active pairs of the whole optimizer step, over all processes


class MOODPOTrainer(Trainer):  # type: ignore[misc]
    """Trains one policy for every weighting of several rewards (MO-ODPO, Gupta et al. 2025).

    Args:
        model: A causal language model, a PEFT model, or a path or Hub id.
        ref_model: A frozen reference of its own; by default `args.reference` says what it is.
        reward_funcs: At least two: preset names, model paths, `PreTrainedModel`s, or callables
            `f(prompts, completions, **columns) -> list[float | None]`, as in TRL.
        args: The settings.
        train_dataset: Rows with a `prompt`: text, or messages that end with a user turn; a
            `datasets.Dataset`, what `load_prompts` gives, or a list. Other columns reach reward
            functions. Empty prompts are dropped, and those over `args.max_prompt_length` are
            dropped or cut, as the log says.
        eval_dataset: The same, or several by name, for `evaluate()`.
        processing_class: The policy's tokenizer; by default the model's own.
        peft_config: Wraps the model in a fresh adapter.
        conditioner: How weights are written; by default as `args` and the reward names say.
        weight_sampler: Draws the weights: a `WeightSampler`, or a function of B seeds that gives
            `[B, K]`, each row by its own seed; by default the one that `args` names.
        lineage: Records of earlier iterations, for `moodpo.json`.
        start: The checkpoint that `model`'s trained weights come from, if any.
        base: Path or id of the SFT model; by default the model's own name.
        task: Name of the task preset, for `moodpo.json`.
        sweep: Called once by each `evaluate()` with this trainer, unless it is asked for another
            `metric_key_prefix`; what it returns joins the metrics as `eval_NAME`. The command line
            passes a sweep over weights, which gives `eval_hypervolume` and `eval_steerability`.
        callbacks: As in `transformers.Trainer`.
        optimizers: As in `transformers.Trainer`.

    Raises:
        ConfigError: If the settings and the model do not fit together.
        DataError: If prompts cannot be used, or none fits.
        RewardSpecError: If a reward is not one, or there are fewer than two.
    """

    # The loss is averaged over the step's active pairs already (transformers >= 5.19).
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        ref_model: PreTrainedModel | None = None,
        reward_funcs: Sequence[str | PreTrainedModel | Callable[..., Any] | Reward] = (),
        args: MOODPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any = None,
        *,
        conditioner: Conditioner | None = None,
        weight_sampler: WeightSampler | Callable[[Sequence[int]], Tensor] | None = None,
        lineage: Sequence[Mapping[str, Any]] = (),
        start: str | None = None,
        base: str | None = None,
        task: str = "assistant",
        sweep: Callable[[MOODPOTrainer], Mapping[str, float]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = args or MOODPOConfig(output_dir="moodpo-output")
        datasets = check_datasets(args, train_dataset, eval_dataset)
        check_data(reward_funcs, *datasets)
        model, tokenizer = _load(model, processing_class, args)
        check_model_lengths(model, args)
        sft = absolute_folder(known_base(model, base, start))
        base = absolute_folder(base or getattr(model.config, "_name_or_path", None) or None)
        start = absolute_folder(start)
        fresh = None
        if peft_config is not None:
            set_seed(args.seed)  # a fresh adapter is drawn from the global generator
            model, fresh = wrap_model(model, peft_config, dropout=not args.disable_dropout)
        prepare_saving(model, tokenizer, base=base)
        if args.activation_checkpointing and args.activation_checkpointing_kwargs is None:
            # Reentrant checkpoints need inputs with gradients, which a frozen embedding has not.
            args.activation_checkpointing_kwargs = {"use_reentrant": False}
        fuse_lora(model)
        self._metrics = {"train": MetricStore(), "eval": MetricStore()}
        self._samples: list[dict[str, Any]] = []
        self._eval_position, self._apart = 0, False
        self._sweep, self._swept = sweep, dict[str, float]()
        self._lineage, self._task, self._base, self._start = tuple(lineage), task, base, start
        super().__init__(
            model=model,
            args=args,
            data_collator=_collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self._check_parallelism()
        self.clock = PhaseClock(self._show_phase)
        panel = self._make_panel(reward_funcs)
        conditioner = conditioner or args.make_conditioner(panel.names)
        if conditioner.objectives != panel.names:
            raise ConfigError(
                f"The conditioner's objectives {conditioner.objectives} are not the rewards "
                f"{panel.names}. Give both in the same order."
            )
        warn_of_dates(tokenizer, conditioner.chat_template_kwargs)
        self.train_dataset, self.eval_dataset = (
            fit_dataset(each, conditioner, tokenizer, args) for each in datasets
        )
        if self.train_dataset is not None:
            check_batches(len(self.train_dataset), args)
        self.reference = make_reference(
            args.reference,
            self.model,
            base=sft,
            start=start,
            ref_model=self._place(ref_model),
            fresh=fresh,
        )
        self._reference_tried, self._passes = False, itertools.count()
        self._dropouts = Dropouts(self.model) if args.disable_dropout else None
        if self._dropouts is not None:
            with self.accelerator.autocast(), self._dropouts.off():
                warn_of_noise(self.model)
        self.normalizer = Normalizer(
            cast(NormalizerKind, args.reward_normalization), len(panel.names)
        )
        self.collector = RolloutCollector(
            conditioner=conditioner,
            tokenizer=tokenizer,
            generator=self.make_generator(self.model),
            panel=panel,
            sampling=sampling_config(args),
            sampler=self._make_sampler(weight_sampler, conditioner),
            num_completions=args.num_generations // args.weights_per_prompt,
            weights_per_prompt=args.weights_per_prompt,
            relabel=args.relabel,
            num_relabels=args.num_relabels,
            phase=self.clock,
        )
        self.paths, self._reference_paths = self._find_paths()
        self._lookahead = self._make_lookahead() if args.async_rollouts else None
        self._guard = NumberGuard(
            panel.names,
            normalizer=lambda: self.normalizer,
            reduce=self._reduce,
            scaler=lambda: self.accelerator.scaler,
        )
        self._watch = SignalWatch()
        self.add_callback(self._guard)
        self.add_callback(self._watch)
        self._replace_progress_bar()
        self.add_callback(ScheduleCallback())

    # ---- What the user calls ----

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of every weight vector."""
        return self.collector.conditioner.objectives

    def train(
        self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None, **kwargs: Any
    ) -> Any:
        """As `transformers.Trainer.train`; resuming restores reward statistics and open metrics.

        Raises:
            ConfigError: If there is no complete checkpoint to resume from.
            ManifestError: If it is of a run that writes weights otherwise.
            DivergenceError: If a loss, a gradient or a weight became NaN or infinite.
            RewardError: If the run had no signal to learn from; its last step is saved.
        """
        if resume_from_checkpoint:
            folder, checkpoint = self.args.output_dir, resume_from_checkpoint
            found = find_checkpoint(checkpoint, folder, warn=logger.warning)
            self._restore_state(found)
            resume_from_checkpoint = str(found)
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            if self._lookahead is not None:
                self._lookahead.close()
                self._lookahead = self._make_lookahead()
        if self._watch.failure is not None:
            raise RewardError(self._watch.failure)
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the adapter or model, with `moodpo.json` and a model card beside it.

        Raises:
            DivergenceError: If a trained weight is NaN or infinite; nothing is written.
        """
        check_savable_weights(self.model)
        super().save_model(output_dir, _internal_call=_internal_call)
        if _internal_call:
            # Remembered scores change how texts are batched, hence rounding: what is resumed from
            # here starts without them, so what goes on from here must too.
            self.collector.panel.cache.clear()
        partial = self._reduced_state()
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            manifest = self.manifest()
            manifest.save(folder)
            write_model_card(manifest, folder, steps=self.state.global_step)
            if _internal_call:
                write_json(folder / STATE_NAME, partial)
            record_base(folder, self._base)
            share_files(folder)

    def manifest(self) -> RunManifest:
        """What `moodpo.json` says of this run."""
        args, collector = self.args, self.collector
        return RunManifest(
            objectives=self.objectives,
            rewards=tuple(collector.panel.describe()),
            conditioning=collector.conditioner.to_dict(),
            scalarization=args.scalarization,
            normalizer=self.normalizer.state_dict(),
            reference=with_recorded_path(self.reference.describe()),
            task=self._task,
            base_model=describe_base(self._base, start=self._start),
            sampling={
                "max_prompt_length": args.max_prompt_length,
                "max_new_tokens": args.max_new_tokens,
                "min_new_tokens": args.min_new_tokens,
                "temperature": args.temperature,
                "top_p": args.top_p,
                "top_k": args.top_k,
            },
            lineage=self._lineage,
            training={
                "peft": hasattr(self.model, "peft_config"),
                "steps": self.state.global_step,
                "seed": args.seed,
                **{
                    name: getattr(args, name)
                    for name in (
                        "beta",
                        "loss_type",
                        "label_smoothing",
                        "label_temperature",
                        "rpo_alpha",
                        "concentration",
                        "weight_sampler",
                        "relabel",
                        "num_relabels",
                        "num_generations",
                        "weights_per_prompt",
                        "pairing",
                        "contrastive_coefficient",
                        "warmup_steps_sft",
                        "pair_fraction",
                        "learning_rate",
                        "per_device_train_batch_size",
                        "gradient_accumulation_steps",
                    )
                },
            },
            versions=_versions(),
        )

    # ---- Hooks of transformers.Trainer ----

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Behind all three loaders: none repeats a prompt, however many processes share them."""
        loader = super()._get_dataloader(*args, **kwargs)
        return share_prompts(loader, self.args.world_size, self.args.process_index)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, MicroBatch]], None]:
        """One optimizer step's prompts in; its scored, paired and referenced micro-batches out."""
        if self.state.global_step >= self.state.max_steps:  # resumed where training ends
            self.control.should_training_stop = True
            return [], None
        self._try_reference_once()
        self._passes = itertools.count()
        self._calibrate_once()
        count, rollout = self._next_rollout(epoch_iterator, num_batches)
        if rollout is None:
            return [], None
        if self.args.reward_normalization == "running" or self.args.scalarization == "chebyshev":
            self.normalizer.observe(self._gather(rollout.rewards).flatten(0, 1))
        pairs, statistics = self._pair(rollout)
        self._record_rollout("train", rollout, pairs, statistics)
        self._watch_signal(statistics)
        self._teach_sampler(rollout)
        self._look_ahead(epoch_iterator, num_batches)
        return self._micro_batches(pairs, count), None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `transformers.Trainer.training_step`, timed; dropout off or its own, as `args` say."""
        with self.clock("train"), self._dropout_of_pass():
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The preference loss of one micro-batch, scaled for the whole optimizer step."""
        batch: MicroBatch = inputs["micro_batch"]
        if batch.tokens is None:
            loss = _zero_loss(model)
        else:
            loss = self._loss(model, batch, "train")
            self._guard.note_loss(loss, batch.pairs)
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """A rollout on held-out prompts: the same weights and seeds at every evaluation."""
        prompts = self._prompt_batch([inputs], first=self._eval_position)
        self._eval_position += int(self._reduce(torch.tensor(len(prompts))))
        rollout = self._collect(prompts, (self.args.seed, "eval"), constant=True)
        pairs, statistics = self._pair(rollout, "eval")
        self._record_rollout("eval", rollout, pairs, statistics)
        if not len(pairs):
            return torch.tensor(float("nan"), device=self.args.device), None, None
        batch = self._micro_batch(pairs, range(len(pairs)), 1.0)
        with self.accelerator.autocast():
            total = self._loss(model, batch, "eval").detach()
        self._metrics["eval"].add("loss", total, len(pairs))
        return total / len(pairs), None, None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As `transformers.Trainer.get_eval_dataloader`; what is passed is checked and fitted."""
        own = eval_dataset is None or isinstance(eval_dataset, str)  # a name among several
        return super().get_eval_dataloader(eval_dataset if own else self._fit(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As `transformers.Trainer.get_test_dataloader`; the data set is checked and fitted."""
        return super().get_test_dataloader(self._fit(test_dataset))

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As `transformers.Trainer.evaluate`, with every training metric on held-out prompts.

        Training goes on as if there had been no evaluation.
        """
        with self._set_apart():
            if metric_key_prefix == "eval":
                self._swept = self._run_sweep()
            metrics: dict[str, float] = super().evaluate(
                eval_dataset, ignore_keys, metric_key_prefix
            )
            if metric_key_prefix == "eval" and self._swept:  # of several data sets none took it
                swept = self._pop_swept()
                self.log(dict(swept))
                metrics |= swept
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `transformers.Trainer.predict`: no predictions, but every metric, as `test_NAME`."""
        with self._set_apart():
            return super().predict(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As `transformers.Trainer.evaluation_loop`, with our metrics under the same prefix.

        The loss is the mean over all active pairs, NaN where there is none.
        """
        self._metrics["eval"], self._eval_position = MetricStore(), 0
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        means = {"loss": float("nan"), **self._pop_means("eval")}
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in means.items()})
        if metric_key_prefix == "eval":
            output.metrics.update(self._pop_swept())
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds training's metrics, reduced over processes in one go, and the sample completions."""
        if not self._apart:
            means = self._pop_means("train")
            self._tell_alarms(means)
            logs.update(means)
        super().log(logs, start_time)
        if self.state.is_world_process_zero:
            folder, step = Path(self.args.output_dir), self.state.global_step
            append_jsonl(folder / "metrics.jsonl", [{"step": step, **logs}])
            if self._samples:
                append_jsonl(folder / "completions.jsonl", self._samples)
                callbacks = self.callback_handler.callbacks
                report_samples(self._samples, callbacks, self.args.report_to, step)
        self._samples = []

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate for `total_flos`: 6 operations per parameter and token (Kaplan et al. 2020)."""
        tokens = inputs["micro_batch"].tokens
        if tokens is None:
            return 0
        operations: int = 6 * self.model.num_parameters() * tokens.input_ids.numel()
        return operations

    def _find_paths(self) -> tuple[FastPaths, FastPaths]:
        """The policy's and the reference's, where they are now: on this process's device."""
        policy = find_fast_paths(self.model).agreed(self._gather)
        with self.reference.active() as model:
            shared = model is self.model
            reference = policy if shared else find_fast_paths(model).agreed(self._gather)
        attention = try_own_attention(self.model, policy, autocast=self.accelerator.autocast)
        said = [policy.describe(), f"fused LoRA {describe_lora(self.model)}"]
        said += [f"own attention {attention}"]
        said += [] if shared else [f"reference: {reference.describe()}"]
        self.fast_paths = "; ".join(said)
        logger.info("Fast paths: %s", self.fast_paths)
        return policy, reference

    # ---- Evaluation ----

    @contextmanager
    def _set_apart(self) -> Iterator[None]:
        """What happens within touches nothing that training goes on with, and logs none of it."""
        self._calibrate_once()
        if self._lookahead is not None:
            self._lookahead.wait()  # rewards answer one at a time
        outside = self._apart, self._samples
        self._apart, self._samples = True, []
        try:
            with interlude(self.model, self.collector.panel, self.clock):
                yield
        finally:
            self._apart, self._samples = outside

    def _run_sweep(self) -> dict[str, float]:
        if self._sweep is None:
            return {}
        with torch.no_grad(), self.accelerator.autocast():
            return dict(self._sweep(self))

    def _pop_swept(self) -> dict[str, float]:
        swept, self._swept = self._swept, {}
        return {f"eval_{name}": value for name, value in swept.items()}

    def _pop_means(self, mode: str) -> dict[str, float]:
        self._complete(self._metrics[mode])
        return with_deviations(self._metrics[mode].pop_means(self._reduce))

    # ---- One optimizer step ----

    def make_generator(self, model: nn.Module) -> Generator:
        """The backend that samples completions; override to bring your own."""
        tokenizer = self.processing_class
        return HFGenerator(
            model,
            **token_roles(model, tokenizer),
            generation_batch_size=self.args.generation_batch_size,
        )

    def _next_rollout(
        self, epoch_iterator: Iterator[Any], num_batches: int
    ) -> tuple[int, RolloutBatch | None]:
        """This step's number of micro-batches and its rollout, collected now or ahead."""
        if self._lookahead is not None:
            with self.clock("generate"):  # what of it training did not cover
                taken = self._lookahead.take()
            if taken is not None:
                return taken
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return 0, None
        key = (self.args.seed, "train", self.state.global_step)
        prompts = self._prompt_batch(batches)
        return len(batches), self._collect(prompts, key, first=self._first(self.state.global_step))

    def _look_ahead(self, epoch_iterator: Iterator[Any], num_batches: int) -> None:
        """Begins the next step's rollout, unless a checkpoint comes first.

        What goes on after a checkpoint is collected under its parameters, as it is when training
        is resumed from it.
        """
        if self._lookahead is None or self._saves_after(self.state.global_step + 1):
            return
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if batches:
            self._lookahead.start(
                self.collector,
                self._prompt_batch(batches),
                key=(self.args.seed, "train", self.state.global_step + 1),
                first=self._first(self.state.global_step + 1),
                num_batches=len(batches),
            )

    def _first(self, step: int) -> int:
        """How many prompts of the run come before a step."""
        args = self.args
        per_pass = self._train_batch_size * args.world_size
        return int(step * per_pass * args.gradient_accumulation_steps)

    def _teach_sampler(self, rollout: RolloutBatch) -> None:
        sampler = self.collector.sampler
        sampler.observe(rollout.weights, self.normalizer.normalize(rollout.rewards))
        if (pending := sampler.pending()).numel():
            sampler.absorb(self._reduce(pending))

    def _saves_after(self, step: int) -> bool:
        by_steps = self.args.save_strategy == "steps" and self.state.save_steps
        return bool(by_steps) and step % self.state.save_steps == 0

    def _make_lookahead(self) -> Lookahead:
        device = self.args.async_rollout_device
        replica = replicate(self.model, None if device is None else torch.device(device))
        generator = self.make_generator(replica)
        return Lookahead(self.model, replica, generator, context=self.accelerator.autocast)

    def _collect(
        self,
        prompts: PromptBatch,
        key: tuple[int | str, ...],
        *,
        first: int = 0,
        constant: bool = False,
    ) -> RolloutBatch:
        collector = self.collector
        if constant:  # weights that do not change while training goes on
            collector = replace(collector, sampler=collector.sampler.constant())
        with torch.no_grad(), self.accelerator.autocast():
            return collector.collect(prompts, key=key, first=first)

    def _pair(self, rollout: RolloutBatch, mode: str = "train") -> tuple[PairBatch, PairStatistics]:
        pairs, statistics = build_pairs(
            rollout,
            normalizer=self.normalizer,
            scalarization=self.args.scalarization,
            pairing=self.args.pairing,
            label_temperature=self.args.label_temperature,
            encode=self.collector.encode,
        )
        pairs = self._widest(pairs)
        with self.clock("reference"), torch.no_grad():
            if self.args.relabel_min_importance > 0:
                pairs = self._likely(pairs, rollout, mode)
            pairs = replace(pairs, ref_logps=self._reference_logps(pairs))
        return pairs, statistics

    def _widest(self, pairs: PairBatch) -> PairBatch:
        """The pairs of widest utility gap, by a threshold over all processes."""
        if self.args.pair_fraction >= 1:
            return pairs
        own = (pairs.utilities[:, 0] - pairs.utilities[:, 1]).abs()  # [P]
        threshold = gap_threshold(self._gather(own), self.args.pair_fraction)
        return pairs.select((own >= threshold).nonzero().flatten().tolist())

    def _likely(self, pairs: PairBatch, rollout: RolloutBatch, mode: str) -> PairBatch:
        """Without relabeled pairs that the policy would hardly write under the new weights."""
        relabeled = pairs.relabeled.any(dim=-1).nonzero().flatten().tolist()
        new = pairs.select(relabeled)
        own = replace(new, prompt_ids=[rollout.prompt_ids[row] for row in new.rows.tolist()])
        with self.accelerator.autocast():
            logps = [self._logps(self.model, each, self.paths) for each in (new, own)]
        lengths = torch.tensor([[len(ids) for ids in pair] for pair in new.completion_ids])
        lengths = lengths.view(-1, 2).to(logps[0].device)
        importance = log_importance(logps[0], logps[1], lengths).exp()  # [P', 2]
        kept = importance.amin(dim=-1) >= self.args.relabel_min_importance  # [P']
        self._metrics[mode].add("relabel/kept", kept.sum(), kept.numel())
        dropped = {i for i, keep in zip(relabeled, kept.tolist(), strict=True) if not keep}
        return pairs.select([i for i in range(len(pairs)) if i not in dropped])

    def _try_reference_once(self) -> None:
        """Before the first step, unless it was resumed: then the policy has moved already."""
        if not self._reference_tried and self.state.global_step == 0:
            with self.accelerator.autocast():
                check_agreement(self.model, self.reference)
        self._reference_tried = True

    @contextmanager
    def _dropout_of_pass(self) -> Iterator[None]:
        """No dropout, or one that depends on seed, step, process and pass alone."""
        args = self.args
        key = ("dropout", self.state.global_step, args.process_index, next(self._passes))
        with ExitStack() as stack:
            stack.enter_context(seeded(derive_seed(args.seed, *key), args.device))
            if self._dropouts is not None:
                stack.enter_context(self._dropouts.off())
            yield

    def _reference_logps(self, pairs: PairBatch) -> Tensor:
        """Log-probabilities `[P, 2]` under the reference."""
        with self.reference.active() as model, self.accelerator.autocast():
            return self._logps(model, pairs, self._reference_paths)

    @torch.no_grad()
    def _logps(self, model: nn.Module, pairs: PairBatch, paths: FastPaths) -> Tensor:
        """Log-probabilities `[P, 2]` without a gradient, in as few passes as memory allows."""
        result = torch.zeros(len(pairs), 2, device=self.args.device)
        was_training = self.model.training
        self.model.eval()
        lengths = paths.lengths(pairs.prompt_ids, pairs.completion_ids)
        for rows in by_token_budget(lengths, REFERENCE_TOKENS):
            scored = completion_logps(
                model,
                self._tokens(pairs, rows, paths),
                linear_head=paths.linear_head,
                with_entropies=False,
                temperature=self.args.temperature,
            )
            result[rows] = scored.logps.view(-1, 2)
        self.model.train(was_training)
        return result

    def _micro_batches(self, pairs: PairBatch, count: int) -> list[dict[str, MicroBatch]]:
        """Spreads active pairs over as many passes as the Trainer will make."""
        total = self._gather(torch.tensor([[float(len(pairs))]])).sum().item()
        # Gradients are averaged over processes, the loss over all their pairs.
        scale = self.args.world_size / max(total, 1.0)
        budget = self.args.tokens_per_pass
        if budget is None and self.args.activation_checkpointing:
            budget = CHECKPOINTED_TOKENS
        # A prompt's labelings stay together: they are compared with each other.
        lengths = self.paths.lengths(pairs.prompt_ids, pairs.completion_ids)
        passes = spread_over_passes(lengths, count, groups=pairs.rows.tolist(), budget=budget)
        return [{"micro_batch": self._micro_batch(pairs, rows, scale)} for rows in passes]

    def _micro_batch(self, pairs: PairBatch, rows: Sequence[int], scale: float) -> MicroBatch:
        return MicroBatch(
            tokens=self._tokens(pairs, rows, self.paths) if rows else None,
            pairs=pairs.select(rows).to(self.args.device),
            scale=scale,
        )

    def _tokens(self, pairs: PairBatch, rows: Sequence[int], paths: FastPaths) -> TokenBatch:
        batch = paths.collate(
            [pairs.prompt_ids[i] for i in rows],
            [pairs.completion_ids[i] for i in rows],
            pad_token_id=padding_token_id(self.processing_class, self.model),
        )
        return batch.to(self.args.device)

    def _loss(self, model: nn.Module, batch: MicroBatch, mode: str) -> Tensor:
        """The sum over a micro-batch's pairs, scaled for the whole optimizer step."""
        assert batch.tokens is not None
        assert batch.pairs.ref_logps is not None
        args, pairs, ref_logps = self.args, batch.pairs, batch.pairs.ref_logps
        # The policy is what samples: log-probabilities of another temperature would call its own
        # completions unlikely, and their likelihood alone (`rpo_alpha`) would sharpen it each step.
        scored = completion_logps(
            model,
            batch.tokens,
            linear_head=self.paths.linear_head,
            temperature=args.temperature,
        )
        policy_logps, lengths = scored.logps.view(-1, 2), scored.lengths.view(-1, 2)
        self._record_pairs(mode, pairs, scored)
        if mode == "train" and self.state.global_step < args.warmup_steps_sft:
            return imitation_loss(policy_logps, lengths).sum() * batch.scale
        losses = voted_loss(
            policy_logps,
            ref_logps,
            lengths,
            pairs.votes,
            loss_type=args.loss_type,
            beta=args.beta,
            label_smoothing=args.label_smoothing,
        )  # [P]
        total = losses.sum()
        if args.rpo_alpha:
            total = total + args.rpo_alpha * imitation_loss(policy_logps, lengths).sum()
        if args.contrastive_coefficient:
            total = total + args.contrastive_coefficient * contrastive_loss(
                policy_logps,
                ref_logps,
                prompts=pairs.rows,
                candidates=pairs.candidates,
                beta=args.beta,
            )
        return total * batch.scale

    # ---- Observation ----

    def _watch_signal(self, statistics: PairStatistics) -> None:
        names = ("labeled", "active", "undefined")
        counts = torch.tensor([float(getattr(statistics, name)) for name in names])
        self._watch.add_step(**dict(zip(names, self._reduce(counts).tolist(), strict=True)))

    def _tell_alarms(self, means: Mapping[str, float]) -> None:
        limit = self.args.max_new_tokens
        for text in self._watch.pop_news(means, self.objectives, max_new_tokens=limit):
            if self.state.is_world_process_zero:
                logger.warning("%s", text)

    def _record_pairs(self, mode: str, pairs: PairBatch, scored: CompletionLogps) -> None:
        assert pairs.ref_logps is not None
        assert scored.entropies is not None
        policy_logps, lengths = scored.logps.detach().view(-1, 2), scored.lengths.view(-1, 2)
        logratios = policy_logps - pairs.ref_logps  # [P, 2]
        implicit = self.args.beta * logratios
        metrics, own = self._metrics[mode], ~pairs.relabeled  # [P, 2]
        metrics.add_values("rewards/chosen", implicit[:, 0])
        metrics.add_values("rewards/rejected", implicit[:, 1])
        metrics.add_values("rewards/margins", implicit[:, 0] - implicit[:, 1])
        metrics.add_values("rewards/accuracies", (implicit[:, 0] > implicit[:, 1]).float())
        # Relabeled completions were sampled under other weights: they say nothing of this policy.
        metrics.add("kl", logratios[own].sum(), own.sum())
        metrics.add("entropy", scored.entropies.view(-1, 2)[own].sum(), lengths[own].sum())
        importance = matched_log_importance(
            policy_logps,
            lengths,
            prompts=pairs.rows,
            candidates=pairs.candidates,
            relabeled=pairs.relabeled,
        )
        metrics.add("relabel/log_importance", importance.sum(), importance.numel())

    def _record_rollout(
        self, mode: str, rollout: RolloutBatch, pairs: PairBatch, statistics: PairStatistics
    ) -> None:
        metrics = self._metrics[mode]
        for k, name in enumerate(self.objectives):
            values = rollout.rewards[..., k]
            # Exact sums: of a constant reward the deviation must come out as 0.
            metrics.add_values(f"objective/{name}/mean", values.double())
            metrics.add_values(f"objective/{name}/square", values.double() ** 2)
        metrics.add_values("utility/chosen", pairs.utilities[:, 0])
        metrics.add_values("utility/rejected", pairs.utilities[:, 1])
        for name in ("active", "ties", "duplicates", "undefined"):
            metrics.add(f"pairs/{name}", getattr(statistics, name), statistics.labeled)
        metrics.add("pairs/flipped", statistics.flipped, statistics.relabeled)
        hits, misses = self.collector.panel.cache.pop_counts()
        metrics.add("score/cache_hits", hits, hits + misses)
        metrics.add("score/cut", *self.collector.panel.pop_cuts())
        lengths = [len(c) for pair in rollout.completion_ids for c in pair]
        metrics.add("completions/mean_length", sum(lengths), len(lengths))
        truncated = (~rollout.finished).sum().item()
        metrics.add("completions/truncated", truncated, len(lengths))
        self._record_time(mode, sum(lengths))
        if self.args.log_completions and len(rollout) and not self._samples:
            self._samples = sample_rows(
                rollout,
                pairs,
                self.objectives,
                step=self.state.global_step,
                limit=self.args.log_completions,
            )

    def _record_time(self, mode: str, tokens: int) -> None:
        # Seconds are of everything since the last rollout: its generation, and the training of
        # the step before it.
        seconds = self.clock.pop()
        for phase in ("generate", "score", "reference", "train"):
            self._metrics[mode].add(f"time/{phase}", seconds.get(phase, 0.0))
        total = sum(seconds.values())
        self._metrics[mode].add("tokens_per_second", tokens, total)

    def _show_phase(self, phase: str) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, PhaseProgress):
                callback.show(phase)

    def _fit(self, dataset: Any) -> Any:
        checked = check_dataset(dataset, "the data set")
        return fit_dataset(checked, self.collector.conditioner, self.collector.tokenizer, self.args)

    def _replace_progress_bar(self) -> None:
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(PhaseProgress)

    # ---- Rewards and state ----

    def _make_panel(self, reward_funcs: Sequence[Any]) -> RewardPanel:
        rewards = load_rewards(
            list(reward_funcs), device=self.args.device, batch_size=self.args.reward_batch_size
        )
        if len(rewards) < 2:
            raise RewardSpecError(
                f"Multi-objective training needs at least two rewards; got {len(rewards)}. Pass "
                "reward_funcs=[first, second]."
            )
        return RewardPanel(rewards)

    def _make_sampler(self, given: Any, conditioner: Conditioner) -> WeightSampler:
        if given is not None:
            return as_sampler(given)
        args = self.args
        return make_sampler(
            args.weight_sampler,
            concentration=args.concentration,
            num_objectives=len(conditioner.objectives),
            corner_probability=args.corner_probability,
            exploration=args.exploration,
            seed=derive_seed(args.seed, "weights"),
        )

    def _calibrate_once(self) -> None:
        """Fits the z-score on the reference's own samples, under weights drawn as in training."""
        fitted = bool(self.normalizer.statistics.count.any())
        if self.args.reward_normalization != "calibrate" or fitted:
            return
        rewards = self._reference_rewards()
        self.normalizer.calibrate(self._gather(rewards).flatten(0, 1))
        logger.info("Calibrated reward scales: %s", self.normalizer.state_dict())

    def _reference_rewards(self) -> Tensor:
        """Raw rewards `[n, 2, K]` of the reference on this process's share of the prompts."""
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        order = torch.randperm(
            len(dataset),
            generator=torch.Generator().manual_seed(derive_seed(self.args.seed, "calibrate")),
        ).tolist()
        count = max(1, min(self.args.calibration_prompts, len(dataset)))
        positions = share(range(count), self.args.world_size, self.args.process_index)
        batch = _collate([dataset[order[p]] for p in positions])
        prompts = PromptBatch(indices=positions, **batch)
        with self.reference.active() as model:
            collector = self.collector
            if model is not self.model:
                collector = replace(collector, generator=self.make_generator(model))
            collector = replace(collector, sampler=collector.sampler.constant())
            with torch.no_grad(), self.accelerator.autocast():
                return collector.collect(prompts, key=(self.args.seed, "calibrate")).rewards

    def _reduced_state(self) -> dict[str, Any]:
        store = self._metrics["train"]
        self._complete(store)
        state = store.state_dict()
        if self.args.world_size > 1 and state:
            stacked = torch.tensor([state[n] for n in sorted(state)], dtype=torch.float64)
            totals = self._reduce(stacked).tolist()
            state = dict(zip(sorted(state), totals, strict=True))
        return {
            "metrics": state,
            "normalizer": self.normalizer.state_dict(),
            "weight_sampler": self.collector.sampler.state_dict(),
            "watch": self._watch.state_dict(),
        }

    def _restore_state(self, checkpoint: Path) -> None:
        check_continuation(RunManifest.load(checkpoint), self.manifest(), source=str(checkpoint))
        state = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        self._watch.load_state_dict(state.get("watch"))
        self.normalizer = Normalizer.from_state_dict(state["normalizer"])
        if self.collector.sampler.state_dict():
            self.collector.sampler.load_state_dict(state.get("weight_sampler", {}))
        if self.args.process_index == 0:
            self._metrics["train"].load_state_dict(state["metrics"])
        else:
            zeros = {name: [0.0, 0.0] for name in state["metrics"]}
            self._metrics["train"].load_state_dict(zeros)

    # ---- Processes and devices ----

    def _prompt_batch(self, batches: Sequence[dict[str, Any]], *, first: int = 0) -> PromptBatch:
        """Joins batches, of which every process has as many; positions count over processes."""
        sizes = self._gather(torch.tensor([[len(batch["prompts"]) for batch in batches]]))  # [W, R]
        filled = [batch for batch in batches if batch["prompts"]]
        names = filled[0]["columns"] if filled else ()
        return PromptBatch(
            prompts=[p for batch in filled for p in batch["prompts"]],
            indices=[first + place for place in places(sizes, self.args.process_index)],
            columns={n: [v for batch in filled for v in batch["columns"][n]] for n in names},
        )

    def _gather(self, values: Tensor) -> Tensor:
        """The rows of all processes, each of which may bring another number of them."""
        if self.args.world_size == 1:
            return values
        return gather_rows(
            values, lambda rows: self.accelerator.gather(rows.to(self.args.device)).cpu()
        )

    def _complete(self, store: MetricStore) -> None:
        """Gives a store the metrics that only other processes have: sums are added up in order."""
        if self.args.world_size > 1:
            store.complete(gather_object(store.names))

    def _reduce(self, values: Tensor) -> Tensor:
        if self.args.world_size == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values.to(self.args.device), "sum")
        return reduced.cpu()

    def _place(self, ref_model: PreTrainedModel | None) -> PreTrainedModel | None:
        return None if ref_model is None else ref_model.to(self.args.device)

    def _check_parallelism(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "FSDP and DeepSpeed shard the parameters that generation needs whole; moodpo "
                "trains with plain data parallelism (DDP). Remove them from the accelerate config."
            )


def sampling_config(args: MOODPOConfig) -> SamplingConfig:
    """The sampling settings of a run."""
    return SamplingConfig(
        max_new_tokens=args.max_new_tokens,
        min_new_tokens=args.min_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
    )


def _load(
    model: str | PreTrainedModel | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    args: MOODPOConfig,
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    if isinstance(model, str):
        model = load_model(model, dtype=torch.float32)
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)  # type: ignore[union-attr]
    return model, tokenizer


def _collate(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = [name for name in features[0] if name != "prompt"] if features else []
    return {
        "prompts": [row["prompt"] for row in features],
        "columns": {name: [row[name] for row in features] for name in names},
    }


def _zero_loss(model: nn.Module) -> Tensor:
    """A loss of 0 that reaches every trained parameter.

    Under DDP it takes a forward pass (of one token): gradients are averaged by hooks that only a
    forward pass arms, and another process may have pairs to train.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        device = next(model.parameters()).device
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        return model(input_ids=token, use_cache=False).logits.float().sum() * 0.0  # type: ignore[no-any-return]
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.stack([p.flatten()[0] * 0.0 for p in trained]).sum()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("moodpo", "torch", "transformers", "trl", "peft")}
