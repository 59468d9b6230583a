"""Which fast paths a model can take: tried on the model itself, never assumed of its kind.

A pair is fastest as one row, `prompt + A + B` under a block mask. That is the same only where every
layer is full attention that reads this mask and these positions: windows, chunks, recurrent states,
convolutions and ALiBi let A through to B, or B see further than it may. Layers with a window read
the mask as it is and are the same for whatever fits into the window.
Shapes: P pairs, N sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moodpo._upstream import lora_layers
from moodpo.core.tokens import TokenBatch, collate_pairs, collate_sequences
from moodpo.errors import ConfigError
from moodpo.models.fast import OWN_ATTENTION, drop_pair_attention, runs_fused, use_pair_attention
from moodpo.models.logps import head_is_linear
from moodpo.models.modes import evaluating
from moodpo.models.probe import mixing_types
from moodpo.models.reach import reach_of, text_config
from moodpo.records import TokenIds
from moodpo.training.reference import Reference
from moodpo.training.trial import REACH, PackingTrial, computing_dtype

__all__ = ["FastPaths", "describe_lora", "find_fast_paths", "find_paths", "try_own_attention"]

Pair = tuple[TokenIds, ...]

# Attention that adds a float mask [N, 1, S, S] to its scores; flash attention and others cannot.
READS_BLOCK_MASKS = ("sdpa", "eager", OWN_ATTENTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPaths:
    """What one model may take, and why it may not take the rest."""

    packed: bool  # prompt and both completions in one row
    linear_head: bool  # the vocabulary head tile by tile, at completion positions only
    window: int | None = None  # longest prompt + completion that may be packed; None for any
    reason: str = ""  # why pairs are not packed

    def collate(
        self,
        prompt_ids: Sequence[TokenIds],
        completion_ids: Sequence[Pair],
        *,
        pad_token_id: int,
    ) -> TokenBatch:
        """The batch of P pairs, packed if all of them may be; completions numbered pair by pair.

        Args:
            prompt_ids: P prompts.
            completion_ids: P pairs of completions.
            pad_token_id: Any valid token id.
        """
        if all(map(self._packs, prompt_ids, completion_ids)):
            return collate_pairs(prompt_ids, completion_ids, pad_token_id=pad_token_id)
        prompts = [p for p, cs in zip(prompt_ids, completion_ids, strict=True) for _ in cs]
        completions = [c for cs in completion_ids for c in cs]
        return collate_sequences(prompts, completions, pad_token_id=pad_token_id)

    def lengths(self, prompt_ids: Sequence[TokenIds], completion_ids: Sequence[Pair]) -> list[int]:
        """Tokens that each of P pairs takes: one row of all, or as many rows of the longest.

        A pair that may not be packed is longer than any that may, so that batches sorted by these
        lengths know their padded size whichever way they are collated.
        """
        return [
            len(prompt) + sum(map(len, pair))
            if self._packs(prompt, pair)
            else len(pair) * _longest(prompt, pair)
            for prompt, pair in zip(prompt_ids, completion_ids, strict=True)
        ]

    def agreed(self, gather: Callable[[Tensor], Tensor]) -> FastPaths:
        """Only what every process found: rounding may differ from one device to another."""
        own = torch.tensor([[int(self.packed), int(self.linear_head)]])  # [1, 2]
        packed, linear_head = gather(own).bool().all(dim=0).tolist()
        reason = self.reason if packed == self.packed else "another process found a difference"
        return replace(self, packed=packed, linear_head=linear_head, reason=reason)

    def describe(self) -> str:
        """One line for a person."""
        limit = f" up to {self.window} tokens (its window)" if self.window else ""
        packed = f"on{limit}" if self.packed else f"off ({self.reason})"
        head = "on" if self.linear_head else "off (logits are not its head's product alone)"
        return f"packed pairs {packed}; tiled head {head}"

    def _packs(self, prompt: TokenIds, pair: Pair) -> bool:
        return self.packed and (self.window is None or _longest(prompt, pair) <= self.window)


def find_fast_paths(model: nn.Module) -> FastPaths:
    """Tries the fast paths on a model: a few passes of at most a few dozen tokens.

    Args:
        model: A causal language model on its device, possibly wrapped by PEFT.

    Returns:
        What it may take. Pairs are packed where the model names no layer that looks back in
        another way, and the trial finds them equal to sequences of their own.

    Raises:
        ConfigError: If the model cannot be run on plain sequences of tokens at all.
    """
    with evaluating(model), torch.no_grad(), mixing_types(model):
        try:
            linear_head = head_is_linear(model)
            trial = PackingTrial(model, linear_head=linear_head)
            alone = trial.alone()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConfigError(
                f"{type(model).__name__} cannot be asked for log-probabilities ({error}). Pass a "
                "causal language model, as AutoModelForCausalLM loads it."
            ) from error
        window, reason = reach_of(model)
        if window is not None and window < REACH:
            reason = f"sliding window {window} < {REACH} tokens"
        reason = reason or _attention_reason(model) or trial.difference(alone)
    return FastPaths(packed=not reason, linear_head=linear_head, window=window, reason=reason)


def try_own_attention(
    model: nn.Module,
    paths: FastPaths,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> str:
    """Lets packed pairs attend by `pair_attention`, where that is faster and found to be the same.

    Args:
        model: The policy on its device, possibly wrapped by PEFT.
        paths: What `find_fast_paths` found for it.
        autocast: The mixed precision that it is trained in.

    Returns:
        For a person: `on`, or off and why.
    """
    device = next(model.parameters()).device.type
    with autocast():
        dtype = computing_dtype(model)
    if device != "cpu":
        return f"off ({device} has a fast kernel)"
    if not paths.packed:
        return "off (pairs are not packed)"
    if dtype == torch.float32:
        return "off (float32)"
    trial = PackingTrial(model, linear_head=paths.linear_head)
    # With gradients: without them torch's kernel is taken.
    with evaluating(model), autocast(), torch.enable_grad():
        expected = trial.packed().detach()
        if not use_pair_attention(model):
            return f"off ({_chosen_attention(model)} attention)"
        reason = trial.difference_to(expected, dtype)
    if reason:
        drop_pair_attention(model)
        return f"off ({reason})"
    return "on"


def find_paths(
    model: nn.Module,
    reference: Reference,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
    gather: Callable[[Tensor], Tensor],
) -> tuple[FastPaths, FastPaths, str]:
    """The policy's and the reference's fast paths, where they are now, and both in words.

    Args:
        model: The policy on this process's device.
        reference: What it is held close to.
        autocast: The mixed precision that it is trained in.
        gather: Concatenates tensors over processes, which all take the same paths.
    """
    policy = find_fast_paths(model).agreed(gather)
    with reference.active() as other:
        shared = other is model
        theirs = policy if shared else find_fast_paths(other).agreed(gather)
    attention = try_own_attention(model, policy, autocast=autocast)
    said = [policy.describe(), f"fused LoRA {describe_lora(model)}", f"own attention {attention}"]
    said += [] if shared else [f"reference: {theirs.describe()}"]
    return policy, theirs, "; ".join(said)


def describe_lora(model: nn.Module) -> str:
    """For a person: how many LoRA layers run fused."""
    layers = lora_layers(model)
    count = sum(map(runs_fused, layers))
    if not layers:
        return "off (no LoRA layers)"
    if not count:
        return "off (its layers do more than add a product)"
    of = "" if count == len(layers) else f" of {len(layers)}"
    return f"on ({count}{of} layers)"


def _attention_reason(model: nn.Module) -> str:
    chosen = _chosen_attention(model)
    return "" if chosen in (None, *READS_BLOCK_MASKS) else f"{chosen} reads no block mask"


def _chosen_attention(model: nn.Module) -> str | None:
    return getattr(text_config(model), "_attn_implementation", None)


def _longest(prompt: TokenIds, pair: Pair) -> int:
    return len(prompt) + max(map(len, pair))
