"""Held out: the Trainer's hooks around an evaluation, which training does not notice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from moodpo.training.calibration import reference_rewards
from moodpo.training.datasets import fit_passed
from moodpo.training.learner import Learner
from moodpo.training.metrics import PhaseClock
from moodpo.training.parallel import Processes
from moodpo.training.recorder import Recorder
from moodpo.training.rollout import RolloutCollector

__all__ = ["HeldOutTrainer"]

logger = logging.getLogger(__name__)


class HeldOutTrainer(Trainer):  # type: ignore[misc]
    """Evaluates a policy on prompts that it does not train on, with every training metric."""

    processes: Processes
    collector: RolloutCollector
    learner: Learner
    recorder: Recorder
    clock: PhaseClock
    _sweep: Callable[[Any], Mapping[str, float]] | None
    _swept: dict[str, float]
    _position: int  # how many prompts of the evaluation in progress came before

    @torch.no_grad()
    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """A rollout on held-out prompts: the same weights and seeds at every evaluation."""
        prompts = self.processes.prompt_batch([inputs], first=self._position)
        self._position += int(self.processes.total(len(prompts)))
        with self.accelerator.autocast():
            rollout = self.collector.collect(prompts, key=(self.args.seed, "eval"))
        pairs, statistics = self.learner.label(rollout)
        with self.clock("reference"):
            pairs = self.learner.with_reference(pairs)
        self.recorder.note_rollout(rollout, pairs, statistics, step=self.state.global_step)
        if not len(pairs):
            return torch.tensor(float("nan"), device=self.args.device), None, None
        batch = self.learner.micro_batch(pairs, range(len(pairs)), 1.0)
        with self.accelerator.autocast():
            total, scored = self.learner.loss(model, batch)
        self.recorder.note_pairs(batch.pairs, scored)
        self.recorder.note_loss(total, len(pairs))
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
        self.recorder.start_evaluation()
        self._position = 0
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        means = self.recorder.pop_evaluation()
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in means.items()})
        if metric_key_prefix == "eval":
            output.metrics.update(self._pop_swept())
        return output

    def calibrate_once(self) -> None:
        """Fits the scales of rewards on the reference, if they are to be and are not yet."""
        fitted = bool(self.learner.normalizer.statistics.count.any())
        if self.args.reward_normalization != "calibrate" or fitted:
            return
        dataset = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        with torch.no_grad(), self.accelerator.autocast():
            rewards = reference_rewards(self.collector, dataset, self.args, self.processes)
        self.learner.normalizer.calibrate(rewards)
        logger.info("Calibrated reward scales: %s", self.learner.normalizer.state_dict())

    @contextmanager
    def _set_apart(self) -> Iterator[None]:
        self.calibrate_once()
        with self.recorder.set_apart(self.model):
            yield

    def _pop_swept(self) -> dict[str, float]:
        swept, self._swept = self._swept, {}
        return {f"eval_{name}": value for name, value in swept.items()}

    def _fit(self, dataset: Any) -> Any:
        return fit_passed(dataset, self.collector.conditioner, self.collector.tokenizer, self.args)
