"""The vocabulary head, tile by tile: log-probabilities without `[M, V]` logits.

Logits exist one tile at a time, rows × tokens, small enough for a CPU's cache; the log-normalizer
is carried from tile to tile as in online softmax (Milakov and Gimelshein 2018), and the mean output
vector under the softmax with it, as attention's output is in flash attention (Dao et al. 2022).
Shapes: M rows, D hidden units, V tokens of the vocabulary, m rows and v tokens of a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["chunked_logps"]


class _Tile(NamedTuple):
    """Largest tile."""

    rows: int
    tokens: int


# On a CPU a tile of 8 MiB in float32 stays in the cache through every pass over it (2 to 5 times
# faster than 64 MiB); elsewhere few and large kernels win.
_CPU_TILE = _Tile(1024, 2048)
_TILE = _Tile(1024, 1 << 14)


def chunked_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    with_entropies: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of given tokens under a linear vocabulary head.

    Equal to `log_softmax(hidden @ weight.T + bias)` at the targets. The gradient with respect to
    the hidden states, `weight[target] - softmax @ weight`, is made in the same pass while the
    softmax is at hand, so that backward multiplies nothing when the head is frozen; the entropies
    come from the same product, `log-normalizer - hidden · (softmax @ weight)`.

    Args:
        hidden: `[M, D]`; its type is that of the products.
        weight: `[V, D]`.
        targets: `[M]` token ids.
        bias: `[V]` or None.
        with_entropies: Whether entropies are wanted: without a gradient they double the work.

    Returns:
        Log-probabilities `[M]` in fp32 nats, and entropies `[M]` (not differentiable) or None.
    """
    # Autocast would cast tile by tile, and not where it matters.
    with torch.autocast(hidden.device.type, enabled=False):
        logps, entropies = _ChunkedLogps.apply(hidden, weight, bias, targets, with_entropies)  # type: ignore[no-untyped-call]
    return logps, entropies if with_entropies else None


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        with_entropies: bool,
    ) -> tuple[Tensor, Tensor]:
        head = weight.to(hidden.dtype)
        wants_unit = ctx.needs_input_grad[0]
        normalizers, entropies = (torch.empty(len(hidden), device=hidden.device) for _ in range(2))
        chosen = F.embedding(targets, head)  # [M, D]
        unit = torch.empty_like(hidden) if wants_unit else None  # d logp / d hidden  [M, D]
        for rows in _slices(len(hidden), _tile(hidden).rows):
            softmax = _online_softmax(hidden[rows], head, bias, mean=wants_unit or with_entropies)
            normalizers[rows] = softmax.normalizer
            if softmax.mean is not None:
                expected = torch.linalg.vecdot(hidden[rows].float(), softmax.mean)
                entropies[rows] = softmax.normalizer - expected - softmax.mean_bias
                if unit is not None:
                    unit[rows] = chosen[rows] - softmax.mean.to(unit.dtype)
        logits = torch.linalg.vecdot(hidden.float(), chosen.float())  # [M]
        logps = logits + (0.0 if bias is None else bias[targets]) - normalizers
        ctx.save_for_backward(hidden, weight, bias, targets, unit, normalizers)
        ctx.mark_non_differentiable(entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, unit, normalizers = ctx.saved_tensors
        grad_hidden = None if unit is None else unit * grad_logps[:, None].to(unit.dtype)
        wants_weight, wants_bias = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        if not (wants_weight or wants_bias):
            return grad_hidden, None, None, None, None
        # d logp / d logits = onehot(target) - softmax, times the incoming gradient.
        scaled = hidden * grad_logps[:, None].to(hidden.dtype)  # [M, D]
        grad_weight = torch.zeros_like(weight).index_add_(0, targets, scaled.to(weight.dtype))
        grad_bias = None
        if wants_bias:
            grad_bias = torch.zeros_like(bias).index_add_(0, targets, grad_logps.to(bias.dtype))
        head = weight.to(hidden.dtype)
        tile = _tile(hidden)
        for rows in _slices(len(hidden), tile.rows):
            for tokens in _slices(len(weight), tile.tokens):
                softmax = _logits(hidden[rows], head, bias, tokens).sub_(normalizers[rows, None])
                softmax = softmax.exp_().mul_(grad_logps[rows, None])  # [m, v]
                grad_weight[tokens] -= (softmax.to(hidden.dtype).T @ hidden[rows]).to(weight.dtype)
                if grad_bias is not None:
                    grad_bias[tokens] -= softmax.sum(dim=0).to(grad_bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None


class _Softmax(NamedTuple):
    """What a pass over the vocabulary leaves, all in float32."""

    normalizer: Tensor  # [m] logsumexp of the logits
    mean: Tensor | None  # [m, D] softmax @ weight
    mean_bias: Tensor | float  # [m] softmax @ bias


def _online_softmax(hidden: Tensor, head: Tensor, bias: Tensor | None, *, mean: bool) -> _Softmax:
    """One pass over the vocabulary for a few rows `[m, D]`."""
    size, device = len(hidden), hidden.device
    # Finite, so that a tile of impossible tokens (logits of -inf) leaves zeros and not NaN.
    lowest = torch.finfo(torch.float32).min
    peak = torch.full((size, 1), lowest, device=device)
    mass = torch.zeros(size, 1, device=device)  # sum of exp(logit - peak) so far
    vectors = torch.zeros(size, hidden.shape[1], device=device) if mean else None
    biases = torch.zeros(size, 1, device=device)
    for tokens in _slices(len(head), _tile(hidden).tokens):
        logits = _logits(hidden, head, bias, tokens)  # [m, v]
        highest = torch.maximum(peak, logits.amax(dim=-1, keepdim=True))
        weights = logits.sub_(highest).exp_()
        shrink = (peak - highest).exp_()  # what was summed under the former peak
        peak = highest
        mass.mul_(shrink).add_(weights.sum(dim=-1, keepdim=True))
        if vectors is None:
            continue
        vectors.mul_(shrink)
        if hidden.dtype == torch.float32:
            vectors.addmm_(weights, head[tokens])
        else:
            vectors.add_(weights.to(hidden.dtype) @ head[tokens])
        if bias is not None:
            biases.mul_(shrink).add_(weights @ bias[tokens, None].float().clamp_min(lowest))
    return _Softmax(
        normalizer=(peak + mass.log()).squeeze(-1),
        mean=None if vectors is None else vectors.div_(mass),
        mean_bias=biases.div_(mass).squeeze(-1),
    )


def _logits(hidden: Tensor, head: Tensor, bias: Tensor | None, tokens: slice) -> Tensor:
    """A tile of logits `[m, v]` in float32, the caller's to overwrite."""
    part = None if bias is None else bias[tokens].to(hidden.dtype)
    return F.linear(hidden, head[tokens], part).float()


def _tile(hidden: Tensor) -> _Tile:
    return _CPU_TILE if hidden.device.type == "cpu" else _TILE


def _slices(count: int, size: int) -> Iterator[slice]:
    starts = itertools.chain(range(0, count, size), [count])
    return itertools.starmap(slice, itertools.pairwise(starts))
