"""Lookahead: the next step's rollout is collected while this step trains.

The policy that samples is then one step older than the one that learns, which online DPO bears
best of the RLHF losses (Noukhovitch et al. 2025, "Asynchronous RLHF"). Log-probabilities of policy
and reference are those of the training step all the same. It pays where sampling and training
have something each to run on: a second GPU, or one that neither fills.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from moodpo.generation.base import Generator
from moodpo.records import PromptBatch, RolloutBatch
from moodpo.training.rollout import RolloutCollector

__all__ = ["Lookahead", "replicate"]


def replicate(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """A copy of the policy to sample from while the policy itself is trained.

    Args:
        model: The policy, before it is wrapped for mixed precision: such a wrapper would go on
            calling the model it was made for.
        device: Where the copy goes. On the policy's own device it shares the frozen parameters,
            so that beside a LoRA adapter it takes a few megabytes.

    Returns:
        The copy, without gradients and in evaluation mode.
    """
    own = next(model.parameters()).device
    shares = device is None or device == own
    frozen = [*model.parameters(), *model.buffers()] if shares else []
    memo = {id(tensor): tensor for tensor in frozen if not tensor.requires_grad}
    replica = copy.deepcopy(model, memo).eval()
    for parameter in replica.parameters():
        if id(parameter) not in memo:
            parameter.requires_grad_(False)
    return replica if shares else replica.to(device)


class Lookahead:
    """Collects one rollout at a time in a thread, by a copy of the policy.

    Args:
        model: The policy that is trained; its trained parameters are copied before each rollout.
        replica: From `replicate`.
        generator: Samples from the replica.
        context: Entered in the thread, where no context of the caller reaches: mixed precision.
    """

    def __init__(
        self,
        model: nn.Module,
        replica: nn.Module,
        generator: Generator,
        *,
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        copies = dict(replica.named_parameters())
        self._synced = [
            (p, copies[name]) for name, p in model.named_parameters() if p.requires_grad
        ]
        self._generator = generator
        self._context = context
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="moodpo-lookahead")
        self._pending: tuple[int, Future[RolloutBatch]] | None = None

    def start(
        self,
        collector: RolloutCollector,
        prompts: PromptBatch,
        *,
        key: tuple[int | str, ...],
        first: int,
        num_batches: int,
    ) -> None:
        """Begins a rollout under the policy's present parameters.

        Args:
            collector: How to condition, sample and score.
            prompts: Of the step to come.
            key: Of the step to come, as in `RolloutCollector.collect`.
            first: As in `RolloutCollector.collect`.
            num_batches: Handed back by `take`.
        """
        with torch.no_grad():
            for trained, copied in self._synced:
                copied.copy_(trained)
        # A clock of phases belongs to the training thread.
        own = replace(collector, generator=self._generator, phase=lambda _: nullcontext())
        self._pending = num_batches, self._threads.submit(self._collect, own, prompts, key, first)

    def take(self) -> tuple[int, RolloutBatch] | None:
        """Waits for the rollout that was begun: its number of batches and itself; None without one.

        Raises:
            Exception: Whatever stopped the rollout, as if it had been collected here.
        """
        if self._pending is None:
            return None
        (num_batches, future), self._pending = self._pending, None
        return num_batches, future.result()

    def wait(self) -> None:
        """Returns once no rollout is running; `take` still gives it, or raises what stopped it."""
        if self._pending is not None:
            self._pending[1].exception()

    def close(self) -> None:
        """Ends the thread; a rollout that nobody took is lost."""
        self._pending = None
        self._threads.shutdown(cancel_futures=True)

    def _collect(
        self,
        collector: RolloutCollector,
        prompts: PromptBatch,
        key: tuple[int | str, ...],
        first: int,
    ) -> RolloutBatch:
        with torch.no_grad(), self._context():
            return collector.collect(prompts, key=key, first=first)
