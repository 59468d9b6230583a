"""Which fast paths a model can take: tried on the model itself, never assumed of its kind.

A pair is fastest as one row, `prompt + A + B` under a block mask. That is the same only where every
layer is full attention that reads this mask and these positions: windows, chunks, recurrent states,
convolutions and ALiBi let A through to B, or B see further than it may. Layers with a window read
the mask as it is and are the same for whatever fits into the window.
Shapes: P pairs, N sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from moodpo.core.logps import (
    TokenBatch,
    collate_pairs,
    collate_sequences,
    completion_logps,
    head_is_linear,
)
from moodpo.core.precision import compute_dtype
from moodpo.errors import ConfigError
from moodpo.records import TokenIds
from moodpo.training.fused_lora import lora_layers, runs_fused
from moodpo.training.pair_attention import NAME as OWN_ATTENTION
from moodpo.training.pair_attention import drop_pair_attention, use_pair_attention

__all__ = ["FastPaths", "describe_lora", "find_fast_paths", "try_own_attention"]

Pair = tuple[TokenIds, ...]

# Attention that adds a float mask [N, 1, S, S] to its scores; flash attention and others cannot.
READS_BLOCK_MASKS = ("sdpa", "eager", OWN_ATTENTION)
# Settings that say how far a query looks: a sequence of so many tokens is seen whole.
WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size")
# Names of anything else that may be one; what it means in tokens is the model's own affair.
LOCAL = ("window", "chunk", "local_att", "index_topk", "index_block")
NOT_LOCAL = ("max_window_layers", "use_sliding_window", "pattern", "chunk_size_feed_forward")


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
        What it may take. A model whose answers hardly depend on the prompt takes no packed pairs:
        nothing would show that they are wrong.

    Raises:
        ConfigError: If the model cannot be run on plain sequences of tokens at all.
    """
    with _evaluating(model), torch.no_grad():
        try:
            linear_head = head_is_linear(model)
            probe = _Probe(model, linear_head=linear_head)
            alone = probe.alone()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{type(model).__name__} cannot be asked for log-probabilities: {error} Pass a "
                "causal language model, as AutoModelForCausalLM loads it."
            ) from error
        reach = reach_of(model)
        reason = reach.reason or _attention_reason(model) or probe.difference(alone)
    return FastPaths(packed=not reason, linear_head=linear_head, window=reach.window, reason=reason)


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
    own = _dtype(model)
    device = next(model.parameters()).device.type
    with autocast():
        dtype = compute_dtype(device, own)
    if device != "cpu":
        return f"off ({device} has a fast kernel)"
    if not paths.packed:
        return "off (pairs are not packed)"
    if dtype == torch.float32:
        return "off (float32)"
    probe = _Probe(model, linear_head=paths.linear_head)
    # With gradients: without them torch's kernel is taken.
    with _evaluating(model), autocast(), torch.enable_grad():
        expected = probe.packed().detach()
        if not use_pair_attention(model):
            return f"off ({getattr(_text_config(model), '_attn_implementation', None)} attention)"
        reason = probe.difference_to(expected, dtype)
    if reason:
        drop_pair_attention(model)
        return f"off ({reason})"
    return "on"


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


def _longest(prompt: TokenIds, pair: Pair) -> int:
    return len(prompt) + max(map(len, pair))


# ---- What the model says of itself ----


class Reach(NamedTuple):
    """How far a model's layers look back."""

    window: int | None = None  # tokens of a sequence that every layer sees whole; None for any
    reason: str = ""  # why that is not known, or too little


def reach_of(model: nn.Module) -> Reach:
    """How far back every layer sees, by its configuration, its cache and its modules.

    Args:
        model: A language model, possibly wrapped by PEFT.
    """
    config = _text_config(model)
    said = dict(_numbers(config.to_dict())) if config is not None else {}
    for module in model.modules():
        said |= {name: value for name, value in _numbers(vars(module)) if _is_local(name)}
    windows = [value for name, value in said.items() if name in WINDOWS]
    for layer in _cache_layers(config):
        if isinstance(layer, DynamicSlidingWindowLayer):
            windows.append(layer.sliding_window)
        elif type(layer) is not DynamicLayer:
            return Reach(reason=f"layers that are not plain attention: {type(layer).__name__}")
    other = next((name for name in said if _is_local(name) and name not in WINDOWS), None)
    if other is not None:
        return Reach(reason=f"local attention, {other} {said[other]}")
    window = min(windows, default=None)
    if window is not None and window < _REACH:
        return Reach(window, f"sliding window {window} < {_REACH} tokens")
    return Reach(window)


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers above 0 in nested settings, by name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield str(name), value


def _is_local(name: str) -> bool:
    named = any(word in name for word in LOCAL)
    return named and not any(word in name for word in NOT_LOCAL)


def _cache_layers(config: Any) -> list[Any]:
    """The layers of the cache that transformers would make; none where it knows nothing."""
    try:
        return list(DynamicCache(config=config).layers)
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _attention_reason(model: nn.Module) -> str:
    config = _text_config(model)
    chosen = getattr(config, "_attn_implementation", None)
    if chosen is None or chosen in READS_BLOCK_MASKS:
        return ""
    return f"{chosen} reads no block mask"


# ---- The trial ----

_PROMPT, _COMPLETION = 16, 8  # tokens
_REACH = _PROMPT + _COMPLETION


class _Probe:
    """Random tokens: P with A or B, alone and packed with each other.

    Everything is compared token by token. A completion's first token is left out: the prompt
    predicts it, and nothing can come between.
    """

    def __init__(self, model: nn.Module, *, linear_head: bool) -> None:
        self._model, self._linear_head = model, linear_head
        self._dtype = _dtype(model)
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
        """A and B packed after P, and B packed behind another A: `[3, tokens]`."""
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
        found = _disagreement(packed, alone[[0, 1, 1]], self._dtype)
        # What another prompt changes is what a mask or a position that is not obeyed may change.
        signal = (alone[1] - alone[2]).abs().mean().item()
        noise = _noise(self._dtype) * alone.abs().max().item()
        exact = _EXACT[self._dtype == torch.float32] * signal
        if found <= exact and signal > noise / 4:
            return ""
        if not found <= max(noise, exact):  # not a number is no agreement either
            return f"a completion changes by {found:.2g} nats per token beside another"
        if signal > 2 * noise or _says_positions(self._model):
            return ""
        return "its answers hardly depend on the prompt, so that a trial shows nothing"

    def difference_to(self, expected: Tensor, dtype: torch.dtype) -> str:
        """Why packed pairs are not as they were before a change; empty if they are."""
        try:
            packed = self.packed().detach()
        except Exception as error:
            return f"its forward does not take it: {type(error).__name__}"
        found = _disagreement(packed, expected, dtype)
        if not found <= _noise(dtype) * expected.abs().max().item():
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


# Of what another prompt changes, by whether the model is in float32. There, rounding makes 1e-6 of
# it, and a mask or position that is not obeyed from 2e-3 on, mostly about 1.
_EXACT = {True: 1e-3, False: 1e-2}


def _disagreement(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The largest difference in float32; in less, the mean of a completion's tokens.

    There, rounding may send a single token to another expert.
    """
    error = (actual - expected).abs()  # [3, tokens]
    return float(error.max() if dtype == torch.float32 else error.mean(dim=1).max())


def _noise(dtype: torch.dtype) -> float:
    """What rounding may change, relative to the largest log-probability."""
    return (16 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps


def _says_positions(model: nn.Module) -> bool:
    """Whether a model by its own account places tokens by the positions it is given."""
    base: Any = model
    if hasattr(base, "get_base_model"):  # PEFT's
        base = base.get_base_model()
    config = _text_config(model)
    settings = {} if config is None else config.to_dict()
    return "position_ids" in inspect.signature(base.forward).parameters and not _alibi(settings)


def _alibi(settings: Mapping[str, Any]) -> bool:
    return any(
        _alibi(value) if isinstance(value, Mapping) else "alibi" in (name if value else "", value)
        for name, value in settings.items()
        if isinstance(value, Mapping | str | bool)
    )


def _drawer(model: nn.Module) -> Callable[[int], TokenIds]:
    """Draws ids that stand for nothing but text, the same ones at every call."""
    config = _text_config(model)
    settings = config.to_dict() if config is not None else {}
    special = {value for name, value in _numbers(settings) if name.endswith(("_id", "_index"))}
    size = int(getattr(config, "vocab_size", 0) or _embedded_tokens(model))
    usual = [i for i in range(1, size) if i not in special] if size < 1000 else None
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> TokenIds:
        if usual is not None:
            picks = torch.randint(len(usual), (count,), generator=generator).tolist()
            return tuple(usual[pick] for pick in picks)
        picks = torch.randint(1, size, (4 * count,), generator=generator).tolist()
        return tuple(pick for pick in picks if pick not in special)[:count]

    return draw


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _embedded_tokens(model: nn.Module) -> int:
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return int(embedding.weight.shape[0])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
