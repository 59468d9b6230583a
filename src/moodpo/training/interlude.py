"""Interlude: an evaluation in the middle of a run, which leaves no trace in its training.

What a rollout touches besides its result is put back: global random numbers, remembered scores
(they change which texts are scored together, hence rounding), the model's mode and the clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from moodpo.rewards import RewardPanel
from moodpo.rewards.cache import ScoreCache
from moodpo.training.metrics import PhaseClock

__all__ = ["interlude", "random_state_kept"]


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Puts the global generators of Python, NumPy and torch back to where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if used else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def interlude(model: nn.Module, panel: RewardPanel, clock: PhaseClock) -> Iterator[None]:
    """What happens within starts with no score remembered, and is forgotten afterwards.

    Args:
        model: The policy; its mode is kept.
        panel: The rewards; scores remembered within are not known outside, nor the reverse, and
            what was cut within is not counted outside.
        clock: Seconds within are not counted outside.
    """
    training, cache, seconds, cuts = model.training, panel.cache, clock.pop(), panel.pop_cuts()
    panel.cache = ScoreCache(cache.max_entries)
    try:
        with random_state_kept():
            yield
    finally:
        panel.cache = cache
        panel.pop_cuts()
        panel.carry_cuts(*cuts)
        clock.seconds = seconds
        model.train(training)
