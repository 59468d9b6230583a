"""`MOODPOTrainer`: Multi-Objective Online DPO on `transformers.Trainer`, through public hooks only.

One rollout serves one whole optimizer step. `get_batch_samples` hands over all prompts of the step
before any policy graph exists, so there is one generate call, one scoring pass per reward and one
reference pass, and the loss is averaged over the active pairs of the step: accumulation and the
number of processes change memory and time, never the gradient. What a step does stands in
`rollout` and `learner`; when it is done, here.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, Trainer

from moodpo.choices import NormalizerKind
from moodpo.conditioning.instruction import Conditioner
from moodpo.core.seeds import derive_seed
from moodpo.errors import ConfigError, RewardError
from moodpo.files import share_files, write_json
from moodpo.generation.base import Generator
from moodpo.generation.hf import HFGenerator
from moodpo.generation.tokens import padding_token_id
from moodpo.manifest import RunManifest, check_continuation
from moodpo.models.chat_templates import warn_of_dates
from moodpo.models.savable import record_base
from moodpo.records import PairBatch, PromptBatch, RolloutBatch
from moodpo.rewards import Reward, RewardPanel, check_data
from moodpo.rewards.normalize import Normalizer
from moodpo.training.alarms import SignalWatch
from moodpo.training.calibration import reference_rewards
from moodpo.training.card import write_model_card
from moodpo.training.checkpoints import STATE_NAME, find_checkpoint
from moodpo.training.config import MOODPOConfig
from moodpo.training.datasets import (
    check_batches,
    check_datasets,
    collate_prompts,
    fit_dataset,
    fit_passed,
)
from moodpo.training.description import Origin, describe_run
from moodpo.training.draws import Draw, dirichlet_draw
from moodpo.training.dropout import Dropouts, dropout_of_pass, warn_of_noise
from moodpo.training.guard import NumberGuard, check_savable_weights
from moodpo.training.interlude import interlude
from moodpo.training.learner import Learner, MicroBatch
from moodpo.training.metrics import (
    MetricStore,
    PhaseClock,
    record_pairs,
    record_rollout,
    record_work,
    with_deviations,
)
from moodpo.training.observe import PhaseProgress, append_jsonl, report_samples, sample_rows
from moodpo.training.pairs import PairStatistics
from moodpo.training.parallel import Processes, share_prompts, zero_loss
from moodpo.training.paths import find_paths
from moodpo.training.reference import check_agreement, make_reference
from moodpo.training.rollout import Key, RolloutCollector
from moodpo.training.schedule import ScheduleCallback
from moodpo.training.setup import Ready, load_panel, prepare
from moodpo.training.state import read_state, restore_metrics, run_state

__all__ = ["MOODPOTrainer"]

logger = logging.getLogger(__name__)


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
        weight_sampler: Draws the weights: a function of B seeds that gives `[B, K]`, each row by
            its own seed; by default Dirichlet(`args.concentration`).
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
        weight_sampler: Draw | None = None,
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
        ready = prepare(model, processing_class, peft_config, args, base=base, start=start)
        self._origin = Origin(lineage=tuple(lineage), task=task, base=ready.base, start=ready.start)
        self._metrics = {"train": MetricStore(), "eval": MetricStore()}
        self._samples: list[dict[str, Any]] = []
        self._eval_position, self._apart = 0, False
        self._sweep, self._swept = sweep, dict[str, float]()
        super().__init__(
            model=ready.model,
            args=args,
            data_collator=collate_prompts,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=ready.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.processes = Processes(
            self.accelerator, args.world_size, args.process_index, args.device
        )
        self.processes.check()
        self.clock = PhaseClock(self._show_phase)
        panel = load_panel(reward_funcs, args)
        conditioner = _fitting(conditioner or args.make_conditioner(panel.names), panel)
        warn_of_dates(ready.tokenizer, conditioner.chat_template_kwargs)
        self.train_dataset, self.eval_dataset = (
            fit_dataset(each, conditioner, ready.tokenizer, args) for each in datasets
        )
        if self.train_dataset is not None:
            check_batches(len(self.train_dataset), args)
        draw = weight_sampler or dirichlet_draw(args.concentration, len(panel))
        self._assemble(ready, ref_model, panel, conditioner, draw)
        self._add_callbacks()

    def _assemble(
        self,
        ready: Ready,
        ref_model: PreTrainedModel | None,
        panel: RewardPanel,
        conditioner: Conditioner,
        draw: Draw,
    ) -> None:
        """Makes what a step is done with: reference, collector and learner."""
        args, autocast = self.args, self.accelerator.autocast
        self.reference = make_reference(
            args.reference,
            self.model,
            base=ready.sft,
            start=ready.start,
            ref_model=None if ref_model is None else ref_model.to(args.device),
            fresh=ready.fresh,
        )
        self._reference_tried, self._passes = False, itertools.count()
        self._dropouts = Dropouts(self.model) if args.disable_dropout else None
        if self._dropouts is not None:
            with autocast(), self._dropouts.off():
                warn_of_noise(self.model)
        self.collector = RolloutCollector(
            conditioner=conditioner,
            tokenizer=ready.tokenizer,
            generator=self.make_generator(self.model),
            panel=panel,
            sampling=args.sampling,
            draw=draw,
            num_completions=args.num_generations // args.weights_per_prompt,
            weights_per_prompt=args.weights_per_prompt,
            relabel=args.relabel,
            bound_probability=args.bound_probability,
            phase=self.clock,
        )
        paths, of_reference, self.fast_paths = find_paths(
            self.model, self.reference, autocast=autocast, gather=self.processes.gather
        )
        logger.info("Fast paths: %s", self.fast_paths)
        self.learner = Learner(
            args=args,
            reference=self.reference,
            normalizer=Normalizer(cast(NormalizerKind, args.reward_normalization), len(panel)),
            encode=self.collector.encode,
            pad_token_id=padding_token_id(ready.tokenizer, self.model),
            paths=paths,
            reference_paths=of_reference,
            processes=self.processes,
            autocast=autocast,
        )

    def _add_callbacks(self) -> None:
        self._guard = NumberGuard(
            self.objectives,
            normalizer=lambda: self.normalizer,
            reduce=self.processes.reduce,
            scaler=lambda: self.accelerator.scaler,
        )
        self._watch = SignalWatch()
        self.add_callback(self._guard)
        self.add_callback(self._watch)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(PhaseProgress)
        self.add_callback(ScheduleCallback())

    # ---- What the user calls ----

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of every weight vector."""
        return self.collector.conditioner.objectives

    @property
    def normalizer(self) -> Normalizer:
        """Puts objectives on one scale."""
        return self.learner.normalizer

    @normalizer.setter
    def normalizer(self, normalizer: Normalizer) -> None:
        self.learner.normalizer = normalizer

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
            self.collector.generator.close()
        if self._watch.failure is not None:
            raise RewardError(self._watch.failure)
        return result

    def make_generator(self, model: nn.Module) -> Generator:
        """The backend that samples completions; override to bring your own."""
        return HFGenerator.of(
            model,
            self.processing_class,
            reference=self.reference.active,
            generation_batch_size=self.args.generation_batch_size,
        )

    def manifest(self) -> RunManifest:
        """What `moodpo.json` says of this run."""
        return describe_run(
            self.args,
            self.collector,
            origin=self._origin,
            normalizer=self.normalizer,
            reference=self.reference,
            steps=self.state.global_step,
            peft=hasattr(self.model, "peft_config"),
        )

    # ---- Hooks of transformers.Trainer ----

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Behind all three loaders: none repeats a prompt, however many processes share them."""
        loader = super()._get_dataloader(*args, **kwargs)
        return share_prompts(loader, self.processes.count, self.processes.index)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, MicroBatch]], None]:
        """One optimizer step's prompts in; its scored, paired and referenced micro-batches out."""
        if self.state.global_step >= self.state.max_steps:  # resumed where training ends
            self.control.should_training_stop = True
            return [], None
        self._begin_once()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return [], None
        key = (self.args.seed, "train", self.state.global_step)
        rollout = self._collect(self.processes.prompt_batch(batches), key)
        self.learner.observe(rollout)
        pairs, statistics = self._label(rollout, "train")
        self._watch.add_step(statistics, self.processes.reduce)
        self._passes = itertools.count()
        passes = self.learner.passes(pairs, len(batches))
        return [{"micro_batch": each} for each in passes], None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `transformers.Trainer.training_step`, timed; dropout off or its own, as `args` say."""
        place = (self.state.global_step, self.processes.index, next(self._passes))
        seed = derive_seed(self.args.seed, "dropout", *place)
        with self.clock("train"), dropout_of_pass(self._dropouts, seed, self.args.device):
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
            loss = zero_loss(model)
        else:
            loss, scored = self.learner.loss(model, batch)
            record_pairs(self._metrics["train"], batch.pairs, scored, beta=self.args.beta)
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
        prompts = self.processes.prompt_batch([inputs], first=self._eval_position)
        self._eval_position += int(self.processes.total(len(prompts)))
        rollout = self._collect(prompts, (self.args.seed, "eval"))
        pairs, _ = self._label(rollout, "eval")
        if not len(pairs):
            return torch.tensor(float("nan"), device=self.args.device), None, None
        batch = self.learner.micro_batch(pairs, range(len(pairs)), 1.0)
        with self.accelerator.autocast():
            total, scored = self.learner.loss(model, batch)
        record_pairs(self._metrics["eval"], batch.pairs, scored, beta=self.args.beta)
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
            if metric_key_prefix == "eval" and self._sweep is not None:
                with torch.no_grad(), self.accelerator.autocast():
                    self._swept = dict(self._sweep(self))
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
            limit = self.args.max_new_tokens
            for text in self._watch.pop_news(means, self.objectives, max_new_tokens=limit):
                if self.state.is_world_process_zero:
                    logger.warning("%s", text)
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
        state = run_state(self._metrics["train"], self.normalizer, self._watch, self.processes)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            manifest = self.manifest()
            manifest.save(folder)
            write_model_card(manifest, folder, steps=self.state.global_step)
            if _internal_call:
                write_json(folder / STATE_NAME, state)
            record_base(folder, self._origin.base)
            share_files(folder)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate for `total_flos`: 6 operations per parameter and token (Kaplan et al. 2020)."""
        tokens = inputs["micro_batch"].tokens
        if tokens is None:
            return 0
        operations: int = 6 * self.model.num_parameters() * tokens.input_ids.numel()
        return operations

    # ---- What several hooks share ----

    def _begin_once(self) -> None:
        """Before the first step: tries the reference, and fits the scales of rewards on it."""
        # A resumed run's policy has moved already.
        if not self._reference_tried and self.state.global_step == 0:
            with self.accelerator.autocast():
                check_agreement(self.model, self.reference)
        self._reference_tried = True
        self._calibrate_once()

    def _calibrate_once(self) -> None:
        fitted = bool(self.normalizer.statistics.count.any())
        if self.args.reward_normalization != "calibrate" or fitted:
            return
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        with torch.no_grad(), self.accelerator.autocast():
            rewards = reference_rewards(self.collector, dataset, self.args, self.processes)
        self.normalizer.calibrate(rewards)
        logger.info("Calibrated reward scales: %s", self.normalizer.state_dict())

    def _collect(self, prompts: PromptBatch, key: Key) -> RolloutBatch:
        self.collector.generator.sync(self.state.global_step)
        with torch.no_grad(), self.accelerator.autocast():
            return self.collector.collect(prompts, key=key)

    def _label(self, rollout: RolloutBatch, mode: str) -> tuple[PairBatch, PairStatistics]:
        """The rollout's pairs with their reference, recorded."""
        pairs, statistics = self.learner.label(rollout)
        with self.clock("reference"):
            pairs = self.learner.with_reference(pairs)
        store, step = self._metrics[mode], self.state.global_step
        record_rollout(store, rollout, pairs, statistics, self.objectives)
        record_work(store, rollout, self.collector.panel, self.clock)
        if (limit := self.args.log_completions) and len(rollout) and not self._samples:
            self._samples = sample_rows(rollout, pairs, self.objectives, step=step, limit=limit)
        return pairs, statistics

    @contextmanager
    def _set_apart(self) -> Iterator[None]:
        """What happens within touches nothing that training goes on with, and logs none of it."""
        self._calibrate_once()
        outside = self._apart, self._samples
        self._apart, self._samples = True, []
        try:
            with interlude(self.model, self.collector.panel, self.clock):
                yield
        finally:
            self._apart, self._samples = outside

    def _pop_swept(self) -> dict[str, float]:
        swept, self._swept = self._swept, {}
        return {f"eval_{name}": value for name, value in swept.items()}

    def _pop_means(self, mode: str) -> dict[str, float]:
        store = self._metrics[mode]
        store.complete(self.processes.others_names(store.names))
        return with_deviations(store.pop_means(self.processes.reduce))

    def _show_phase(self, phase: str) -> None:
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, PhaseProgress):
                callback.show(phase)

    def _fit(self, dataset: Any) -> Any:
        return fit_passed(dataset, self.collector.conditioner, self.collector.tokenizer, self.args)

    def _restore_state(self, checkpoint: Path) -> None:
        check_continuation(RunManifest.load(checkpoint), self.manifest(), source=str(checkpoint))
        state = read_state(checkpoint)
        self._watch.load_state_dict(state.get("watch"))
        self.normalizer = Normalizer.from_state_dict(state["normalizer"])
        restore_metrics(self._metrics["train"], state, index=self.processes.index)


def _fitting(conditioner: Conditioner, panel: RewardPanel) -> Conditioner:
    """The conditioner, if its objectives are the rewards."""
    if conditioner.objectives != panel.names:
        raise ConfigError(
            f"The conditioner's objectives {conditioner.objectives} are not the rewards "
            f"{panel.names}. Give both in the same order."
        )
    return conditioner
