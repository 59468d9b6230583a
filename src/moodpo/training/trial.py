"""Packed pairs, tried on a model: log-probabilities of the same tokens packed and alone.

Random tokens: a prompt P with completions A and B. Everything is compared token by token; the
first token of a completion is left out, for the prompt predicts it and nothing can come between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from moodpo.core.precision import compute_dtype
from moodpo.core.tokens import TokenBatch, collate_pairs, collate_sequences
from moodpo.models.logps import completion_logps
from moodpo.models.reach import numbers, says_positions, text_config
from moodpo.records import TokenIds

__all__ = ["REACH", "PackingTrial", "computing_dtype"]

_PROMPT, _COMPLETION = 16, 8  # tokens
REACH = _PROMPT + _COMPLETION
"""Tokens of the longest sequence of a trial: what it says holds for windows of at least that."""

# What packing may change, of what another prompt changes; by whether the model is in float32.
# There, rounding makes about 1e-6 of it, and a mask or a position that is not obeyed about 1. Only
# in untrained models a recurrent layer changes less; those are known by their cache (`reach`).
_EXACT = {True: 1e-3, False: 1e-2}


class PackingTrial:
    """A few tokens to score in several ways.

    Args:
        model: A causal language model on its device, in evaluation mode.
        linear_head: What `head_is_linear` says of it.
    """

    def __init__(self, model: nn.Module, *, linear_head: bool) -> None:
        self._model, self._linear_head = model, linear_head
        draw = _drawer(model)
        self._prompt, self._other = draw(_PROMPT), draw(_PROMPT)
        self._first, self._second = draw(_COMPLETION), draw(_COMPLETION)
        self._beside = draw(_COMPLETION - 3)

    def alone(self) -> Tensor:
        """A after P, B after P, and B after another prompt: `[3, tokens]`."""
        batch = collate_sequences(
            [self._prompt, self._prompt, self._other],
            [self._first, self._second, self._second],
            pad_token_id=0,
        )
        return self._token_logps(batch).view(3, _COMPLETION)[:, 1:]

    def packed(self) -> Tensor:
        """A and B packed after P, and B packed beside another, shorter A: `[3, tokens]`."""
        batch = collate_pairs(
            [self._prompt, self._prompt],
            [(self._first, self._second), (self._beside, self._second)],
            pad_token_id=0,
        )
        sizes = [_COMPLETION, _COMPLETION, _COMPLETION - 3, _COMPLETION]
        first, second, _, again = torch.split(self._token_logps(batch), sizes)
        return torch.stack([first, second, again])[:, 1:]

    def difference(self, alone: Tensor) -> str:
        """Why packed pairs are not the same as `alone()`; empty if they are."""
        try:
            packed = self.packed()
        except Exception as error:  # whatever a model does with a mask that it does not expect
            return f"its forward takes no block mask: {type(error).__name__}"
        dtype = computing_dtype(self._model)
        found = _disagreement(packed, alone[[0, 1, 1]], dtype)
        # What another prompt changes is what a mask or a position that is not obeyed may change.
        signal = (alone[1] - alone[2]).abs().mean().item()
        noise = _noise(dtype) * alone.abs().max().item()
        exact = _EXACT[dtype == torch.float32] * signal
        if found <= exact and signal > noise / 4:
            return ""
        if not found <= max(noise, exact):  # not a number is no agreement either
            return f"a completion changes by {found:.2g} nats per token beside another"
        if says_positions(self._model):  # no more than rounding, and nothing speaks against it
            return ""
        return "the trial shows nothing: its answers hardly depend on the prompt"

    def difference_to(self, expected: Tensor, dtype: torch.dtype) -> str:
        """Why packed pairs are not as they were before a change; empty if they are.

        Args:
            expected: What `packed()` was.
            dtype: That the model now computes in.
        """
        try:
            packed = self.packed().detach()
        except Exception as error:
            return f"its forward does not take it: {type(error).__name__}"
        found = _disagreement(packed, expected, dtype)
        if not found <= 4 * _noise(dtype) * expected.abs().max().item():
            return f"log-probabilities change by {found:.2g} nats per token"
        return ""

    def _token_logps(self, batch: TokenBatch) -> Tensor:
        count = len(batch.targets)
        batch = replace(batch, owners=torch.arange(count), num_completions=count)
        return completion_logps(
            self._model,
            batch.to(next(self._model.parameters()).device),
            linear_head=self._linear_head,
            with_entropies=False,
        ).logps.float()


def computing_dtype(model: nn.Module) -> torch.dtype:
    """The type of a model's products now: of its weights, or autocast's."""
    first = next(p for p in model.parameters() if p.is_floating_point())
    return compute_dtype(first.device.type, first.dtype)


def _disagreement(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The largest difference in float32; in less, the mean of a completion's tokens.

    There, rounding may send a single token to another expert.
    """
    error = (actual - expected).abs()  # [3, tokens]
    return float(error.max() if dtype == torch.float32 else error.mean(dim=1).max())


def _noise(dtype: torch.dtype) -> float:
    """What rounding may change in a `_disagreement`, relative to the largest log-probability."""
    return (16 if dtype == torch.float32 else 1) * torch.finfo(dtype).eps


def _drawer(model: nn.Module) -> Callable[[int], TokenIds]:
    """Draws ids that stand for nothing but text, the same ones for every trial."""
    config: Any = text_config(model)
    settings = {} if config is None else config.to_dict()
    special = {value for name, value in numbers(settings) if name.endswith(("_id", "_index"))}
    size = getattr(config, "vocab_size", None)
    if size is None:
        size = len(model.get_input_embeddings().weight)  # type: ignore[operator]
    usual = [token for token in range(min(size, 1000)) if token not in special]
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> TokenIds:
        picks = torch.randint(len(usual), (count,), generator=generator).tolist()
        return tuple(usual[pick] for pick in picks)

    return draw
