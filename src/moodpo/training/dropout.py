"""Dropout: off while the policy's log-probabilities are computed, or else repeatable.

The reference is computed without dropout. A policy with dropout differs from a reference that it
equals, by a bias and a noise which the loss would answer to.

Dropout hides in modules (`nn.Dropout`), in numbers that modules keep for `F.dropout` and attention
(`attention_dropout`, `layerdrop`), and in configs that are read at every pass. All are set to 0 for
the length of a pass and put back: what is saved says what the user said. What is random in training
mode besides (noisy routers) is found by trying.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from moodpo.models.probe import probe_ids, tolerance

__all__ = ["Dropouts", "dropout_of_pass", "noisy_module", "seeded", "warn_of_noise"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"drop|jitter_noise", re.IGNORECASE)
_MODULE_NAMES = ("p", "rate", "prob")  # of a class that is called dropout itself


class Dropouts:
    """Every dropout probability of a model that is not 0.

    Args:
        model: Any module; adapters that are added later are not known.
    """

    def __init__(self, model: nn.Module) -> None:
        self._found = list(_probabilities(model))

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it, all of them are 0."""
        try:
            for owner, name, _ in self._found:
                owner[name] = 0.0
            yield
        finally:
            for owner, name, value in self._found:
                owner[name] = value


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within it, the global generators start from a seed; afterwards they are as before.

    So neither an evaluation nor a resumed run changes what is dropped.

    Args:
        seed: At most 64 bits.
        device: Of the model.
    """
    on_cpu = device.type == "cpu"
    devices, kind = ([], "cuda") if on_cpu else ([device], device.type)
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield


@contextmanager
def dropout_of_pass(dropouts: Dropouts | None, seed: int, device: torch.device) -> Iterator[None]:
    """No dropout, or one that depends on a seed alone.

    Args:
        dropouts: Those to switch off; None leaves them on.
        seed: Of what is dropped then: a function of the run's seed, step, process and pass.
        device: Of the model.
    """
    with seeded(seed, device), nullcontext() if dropouts is None else dropouts.off():
        yield


def warn_of_noise(model: nn.Module) -> None:
    """Says which module is random in training mode, where one is: to be asked without dropout."""
    if (name := noisy_module(model)) is not None:
        logger.warning(
            "Training passes are random in %s although dropout is off: kl and losses will not be "
            "those of the policy that samples.",
            name,
        )


def noisy_module(model: nn.Module) -> str | None:
    """The first module whose output is random in training mode; None where nothing is.

    Args:
        model: A causal language model; two small forward passes are made.
    """
    first, second = (_training_outputs(model, seed) for seed in (1, 2))
    limit = tolerance(model)
    for (name, ours), (other, theirs) in zip(first, second, strict=False):  # layers may be skipped
        if name != other or ours.shape != theirs.shape:
            return name
        if not torch.allclose(ours, theirs, atol=limit, rtol=limit, equal_nan=True):
            return name
    return None


def _probabilities(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, float]]:
    """Owner, name and value of each; owners are attribute dictionaries: no setter intervenes."""
    configs: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        is_dropout = "drop" in type(module).__name__.lower()
        for name, value in vars(module).items():
            named = _NAME.search(name) or (is_dropout and name in _MODULE_NAMES)
            if named and _is_probability(value):
                yield vars(module), name, value
        configs |= _configs_of(module)
    pending = list(configs.values())
    while pending:
        config = pending.pop()
        for name, value in vars(config).items():
            if _NAME.search(name) and _is_probability(value):
                yield vars(config), name, value
        inner = {k: v for k, v in _configs_of(config).items() if k not in configs}
        configs |= inner
        pending += inner.values()


def _configs_of(owner: object) -> dict[int, PreTrainedConfig]:
    return {id(v): v for v in vars(owner).values() if isinstance(v, PreTrainedConfig)}


def _is_probability(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


@torch.no_grad()
def _training_outputs(model: nn.Module, seed: int) -> list[tuple[str, Tensor]]:
    """What each module gave in training mode, innermost modules first."""
    seen: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                seen.append((name, tensor.float().clone()))  # it may be changed in place

        return hook

    hooks = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if n]
    ids = probe_ids(model)
    try:
        with _training(model), seeded(seed, ids.device):
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return [*seen, (type(model).__name__, logits.float())]


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Within it, all modules are in training mode; afterwards each is in its own again."""
    changed = [module for module in model.modules() if not module.training]
    try:
        for module in changed:
            module.training = True
        yield
    finally:
        for module in changed:
            module.training = False
