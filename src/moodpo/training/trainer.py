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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback

from moodpo.conditioning.instruction import Conditioner
from moodpo.core.seeds import derive_seed
from moodpo.errors import RewardError
from moodpo.generation.base import Generator
from moodpo.generation.hf import HFGenerator
from moodpo.manifest import RunManifest, check_continuation
from moodpo.models.savable import check_savable_weights
from moodpo.rewards import Reward, RewardPanel, check_data
from moodpo.rewards.normalize import Normalizer
from moodpo.training.checkpoints import find_checkpoint
from moodpo.training.config import MOODPOConfig
from moodpo.training.datasets import check_datasets, fit_datasets
from moodpo.training.description import Origin, describe_run
from moodpo.training.draws import Draw, dirichlet_draw
from moodpo.training.dropout import dropout_of_pass
from moodpo.training.guard import NumberGuard
from moodpo.training.held_out import HeldOutTrainer
from moodpo.training.learner import MicroBatch
from moodpo.training.metrics import PhaseClock
from moodpo.training.parallel import Processes, collate_prompts, share_prompts, zero_loss
from moodpo.training.recorder import PhaseProgress, Recorder, show_phase
from moodpo.training.reference import check_agreement, make_reference
from moodpo.training.schedule import ScheduleCallback
from moodpo.training.setup import Ready, assemble, load_objectives, prepare
from moodpo.training.state import restore_state, run_state, write_run_files

__all__ = ["MOODPOTrainer"]

logger = logging.getLogger(__name__)


class MOODPOTrainer(HeldOutTrainer):
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
        self._sweep, self._swept, self._position = sweep, {}, 0
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
        self.processes = Processes.of(self.accelerator, args)
        panel, conditioner = load_objectives(reward_funcs, conditioner, ready.tokenizer, args)
        self.train_dataset, self.eval_dataset = fit_datasets(
            *datasets, conditioner, ready.tokenizer, args
        )
        self._assemble(ready, ref_model, panel, conditioner, weight_sampler)
        self._add_callbacks()

    def _assemble(
        self,
        ready: Ready,
        ref_model: PreTrainedModel | None,
        panel: RewardPanel,
        conditioner: Conditioner,
        draw: Draw | None,
    ) -> None:
        """Makes what a step is done with."""
        args = self.args
        self.reference = make_reference(
            args.reference,
            self.model,
            base=ready.sft,
            start=ready.start,
            ref_model=ref_model,
            fresh=ready.fresh,
        )
        self.clock = PhaseClock(lambda phase: show_phase(self.callback_handler.callbacks, phase))
        parts = assemble(
            args,
            ready,
            self.model,
            reference=self.reference,
            conditioner=conditioner,
            panel=panel,
            draw=draw or dirichlet_draw(args.concentration, len(panel)),
            generator=self.make_generator(self.model),
            processes=self.processes,
            phase=self.clock,
        )
        self.collector, self.learner = parts.collector, parts.learner
        self._dropouts, self.fast_paths = parts.dropouts, parts.fast_paths
        self.recorder = Recorder(panel, self.processes, self.clock, args)
        self._begun, self._passes = False, itertools.count()

    def _add_callbacks(self) -> None:
        self._guard = NumberGuard(
            self.objectives,
            normalizer=lambda: self.normalizer,
            reduce=self.processes.reduce,
            scaler=lambda: self.accelerator.scaler,
        )
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(PhaseProgress)
        for callback in (self._guard, self.recorder.watch, ScheduleCallback()):
            self.add_callback(callback)

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
            check_continuation(RunManifest.load(found), self.manifest(), source=str(found))
            self.normalizer = restore_state(found, self.recorder, self.processes)
            resume_from_checkpoint = str(found)
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.collector.generator.close()
        if self.recorder.watch.failure is not None:
            raise RewardError(self.recorder.watch.failure)
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
        if not self._begun:
            self._begin()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if not batches:
            return [], None
        step = self.state.global_step
        self.collector.generator.sync(step)
        with torch.no_grad(), self.accelerator.autocast():
            prompts = self.processes.prompt_batch(batches)
            rollout = self.collector.collect(prompts, key=(self.args.seed, "train", step))
        self.learner.observe(rollout)
        pairs, statistics = self.learner.label(rollout)
        with self.clock("reference"):
            pairs = self.learner.with_reference(pairs)
        self.recorder.note_rollout(rollout, pairs, statistics, step=step)
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
            self.recorder.note_pairs(batch.pairs, scored)
            self._guard.note_loss(loss, batch.pairs)
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds training's metrics, reduced over processes in one go, and the sample completions."""
        logs.update(self.recorder.pop_training())
        super().log(logs, start_time)
        callbacks = self.callback_handler.callbacks
        self.recorder.write(logs, step=self.state.global_step, callbacks=callbacks)

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
        state = run_state(self.recorder, self.normalizer, self.processes)  # of all processes
        if self.args.should_save:
            write_run_files(
                Path(output_dir or self.args.output_dir),
                self.manifest(),
                base=self._origin.base,
                state=state if _internal_call else None,
            )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate for `total_flos`: 6 operations per parameter and token (Kaplan et al. 2020)."""
        tokens = inputs["micro_batch"].tokens
        if tokens is None:
            return 0
        operations: int = 6 * self.model.num_parameters() * tokens.input_ids.numel()
        return operations

    # ---- Once per run ----

    def _begin(self) -> None:
        """Before the first step: tries the reference, and fits the scales of rewards on it."""
        # A resumed run's policy has moved already.
        if self.state.global_step == 0:
            with self.accelerator.autocast():
                check_agreement(self.model, self.reference)
        self.calibrate_once()
        self._begun = True
