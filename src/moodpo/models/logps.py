"""Log-probabilities of completion tokens, without ever building `[N, S, V]` logits.

Knows nothing of text, weights or rewards. Two steps: the model's trunk gives hidden states, and the
vocabulary head meets only the positions that predict completion tokens, tile by tile.
Shapes: N sequences, S positions, M completion tokens of all sequences together, D hidden units,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moodpo.core.precision import compute_dtype
from moodpo.core.tokens import TokenBatch
from moodpo.models.fast import chunked_logps

__all__ = [
    "CompletionLogps",
    "completion_logps",
    "head_is_linear",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionLogps:
    """Sums over each completion's tokens; padding never enters."""

    logps: Tensor  # [C] in nats, differentiable
    entropies: Tensor | None  # [C] in nats, detached; None when they were not asked for
    lengths: Tensor  # [C] tokens


def completion_logps(
    model: nn.Module,
    batch: TokenBatch,
    *,
    linear_head: bool,
    with_entropies: bool = True,
    temperature: float = 1.0,
) -> CompletionLogps:
    """Log-probabilities and entropies of every completion in the batch.

    With a temperature they are those of `softmax(logits / temperature)`: of the distribution that
    completions are sampled from, which is the policy that an on-policy loss is about.

    Args:
        model: A causal language model, possibly wrapped (PEFT, DDP).
        batch: What `collate_pairs` or `collate_sequences` made.
        linear_head: Whether the model's logits are a plain linear map of its hidden states
            (`head_is_linear`). If so the head is applied in chunks to completion positions only;
            otherwise the model computes its own logits everywhere and they are gathered.
        with_entropies: Whether entropies are wanted; where no gradient is, they cost extra.
        temperature: That logits are divided by, above 0.

    Returns:
        Sums over each completion's tokens.
    """
    kwargs = _inputs(model, batch)
    if linear_head:
        with _bare_hidden_states(model) as (head, dtypes):
            hidden = model(**kwargs).logits  # [N, S, D]
        # Mixed precision turns outputs into float32 on their way out of the model.
        rows = hidden.flatten(0, 1)[batch.predictors]  # [M, D]
        bias: Tensor | None = head.bias
        if temperature != 1:  # of a linear map: dividing what goes in divides what comes out
            rows = rows.float() / temperature
            bias = None if bias is None else bias / temperature
        token_logps, token_entropies = chunked_logps(
            rows.to(dtypes[0]), head.weight, batch.targets, bias, with_entropies=with_entropies
        )
    else:
        logits = model(**kwargs).logits.flatten(0, 1)[batch.predictors].float()  # [M, V]
        all_logps = (logits / temperature).log_softmax(dim=-1)
        token_logps = all_logps.gather(-1, batch.targets[:, None]).squeeze(-1)
        token_entropies = _entropies(all_logps.detach()) if with_entropies else None
    zeros = torch.zeros(batch.num_completions, device=token_logps.device, dtype=token_logps.dtype)

    def total(values: Tensor) -> Tensor:
        return zeros.index_add(0, batch.owners, values)

    return CompletionLogps(
        logps=total(token_logps),
        entropies=None if token_entropies is None else total(token_entropies),
        lengths=total(torch.ones_like(token_logps, requires_grad=False)),
    )


def _inputs(model: nn.Module, batch: TokenBatch) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.position_ids is not None:
        kwargs["position_ids"] = batch.position_ids
    if batch.attention_mask is not None:
        kwargs["attention_mask"] = _additive_mask(batch.attention_mask, model)
    if _returns_router_logits(model):
        # They feed an auxiliary loss beside the model's own, which is not asked for here, and
        # whose sums know neither such masks nor such logits.
        kwargs["output_router_logits"] = False
    return kwargs


@torch.no_grad()
def head_is_linear(model: nn.Module, *, tolerance: float = 1e-5) -> bool:
    """Whether `logits = head(hidden)` exactly, tried on a few tokens rather than believed.

    False for models that cap or shift their logits after the head (Gemma 2; scaling is linear),
    for heads that carry an adapter or are quantized, and for models whose output has no such head.

    Args:
        model: A causal language model, possibly wrapped.
        tolerance: Largest relative difference allowed, of the largest logit.

    Returns:
        Whether `completion_logps` may use the chunked head.
    """
    head = _output_head(model)
    if not isinstance(head, nn.Linear) or not _is_plain(head):
        return False
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(4, device=head.weight.device)[None]  # [1, 4]
        logits = model(input_ids=ids, use_cache=False).logits.float()
        with _bare_hidden_states(model, scale=_TRIAL_SCALE):
            hidden = model(input_ids=ids, use_cache=False).logits
        if hidden.shape[-1] != head.weight.shape[1] or hidden.device != head.weight.device:
            return False
        expected = F.linear(hidden / _TRIAL_SCALE, head.weight.to(hidden.dtype), head.bias).float()
        return bool((logits - expected).abs().max() <= tolerance * logits.abs().max())
    finally:
        model.train(was_training)


# A cap on logits shows in large ones only, which a model without training has not. A power of two
# leaves everything else as it is, to the last bit.
_TRIAL_SCALE = 64


@contextmanager
def _bare_hidden_states(
    model: nn.Module, *, scale: float = 1
) -> Iterator[tuple[nn.Linear, list[torch.dtype]]]:
    """Within it, the model's `logits` are its last hidden states: its head passes them through.

    The call still enters by the outermost wrapper, so that DDP sees a normal forward. Yields the
    head, and a list to which each call adds the type that the head would have computed in. With a
    scale, hidden states come out multiplied.
    """
    head = _output_head(model)
    assert isinstance(head, nn.Linear)
    dtypes: list[torch.dtype] = []

    def pass_through(input: Tensor) -> Tensor:
        dtypes.append(compute_dtype(input.device.type, input.dtype))
        return input if scale == 1 else input * scale

    before = head.__dict__.get("forward")  # a hook of accelerate's, or another replacement
    head.__dict__["forward"] = pass_through
    try:
        yield head, dtypes
    finally:
        del head.__dict__["forward"]
        if before is not None:
            head.__dict__["forward"] = before


def _is_plain(head: nn.Linear) -> bool:
    """Whether a head is its weight and bias, in numbers that can be multiplied.

    A subclass with parameters of its own would give the same values at first, and then train them
    without a gradient.
    """
    names = {name for name, _ in head.named_parameters()}
    return (
        names <= {"weight", "bias"}
        and type(head.weight.data) is Tensor
        and head.weight.is_floating_point()
        and head.weight.dim() == 2
        and not head.weight.is_meta
    )


def _entropies(logps: Tensor) -> Tensor:
    return -(logps.exp() * logps).sum(dim=-1)


def _output_head(model: nn.Module) -> nn.Module | None:
    getter = getattr(_language_model(model), "get_output_embeddings", None)
    return getter() if callable(getter) else None


def _returns_router_logits(model: nn.Module) -> bool:
    config = getattr(_language_model(model), "config", None)
    return bool(getattr(config, "output_router_logits", False))


def _language_model(model: nn.Module) -> nn.Module:
    """The model within wrappers that know nothing of language (DDP)."""
    while not hasattr(model, "get_output_embeddings") and hasattr(model, "module"):
        model = model.module  # type: ignore[assignment]
    return model


def _additive_mask(mask: Tensor, model: nn.Module) -> Tensor:
    # A 4-D mask reaches the attention kernel as it is; a boolean one would be added as 0 and 1 by
    # eager attention, so hand over what every implementation understands.
    if mask.dim() != 4:
        return mask
    own = next(p.dtype for p in model.parameters() if p.is_floating_point())
    dtype = compute_dtype(mask.device.type, own)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )
