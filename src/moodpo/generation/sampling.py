"""Drawing tokens: keyed uniforms and inverse-CDF sampling, as pure functions of tensors.

Knows nothing of models or text, and never touches a global generator: every uniform is a hash of
(seed, completion, position), so a draw does not depend on what else is in the batch.

Shapes: B prompts, n completions per prompt, T tokens per completion, N rows (sequences), V tokens
in the vocabulary, E end-of-sequence tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moodpo.errors import GenerationError

__all__ = ["forbid_tokens", "sample_tokens", "uniforms"]

# Splitmix64 (Steele, Lea and Flood 2014): the golden-ratio increment and the two multipliers of
# the finalizer. Streams of different keys start at unrelated points of the same sequence.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

# Cumulative sums run over blocks of that many tokens first, then inside one block: two short
# passes instead of a serial one over the vocabulary, and smaller rounding errors.
_BLOCK = 256

# Nucleus sampling looks at that many of the likeliest tokens first, then at ever more of them.
_FIRST_CANDIDATES = 256
_CANDIDATE_GROWTH = 16


def uniforms(seeds: Sequence[int], *, num_completions: int, num_tokens: int) -> Tensor:
    """Uniform numbers keyed by (seed, completion, token), by counter-based hashing.

    Entry (i, j, t) depends on `seeds[i]`, j and t alone: asking for more completions or tokens
    only appends.

    Args:
        seeds: B integers; taken modulo 2^64.
        num_completions: n.
        num_tokens: T.

    Returns:
        Uniforms in [0, 1) `[B, n, T]` in float64, with 53 random bits, on the CPU.
    """
    keys = np.array([int(seed) % 2**64 for seed in seeds], dtype=np.uint64)[:, None, None]
    completions = np.arange(1, num_completions + 1, dtype=np.uint64)[:, None]
    tokens = np.arange(1, num_tokens + 1, dtype=np.uint64)
    streams = _mix(_mix(keys + _INCREMENT) + completions * _INCREMENT)  # [B, n, 1]
    bits = _mix(streams + tokens * _INCREMENT)  # [B, n, T]
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def forbid_tokens(logits: Tensor, token_ids: Tensor, rows: Tensor | None = None) -> Tensor:
    """Makes tokens impossible in some rows, or in all.

    Args:
        logits: `[N, V]`, not changed.
        token_ids: Tokens `[E]` to forbid.
        rows: `[N]` bool, where they are forbidden; everywhere when None.

    Returns:
        Logits `[N, V]` in float32 with -inf at the forbidden places.
    """
    forbidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    forbidden[token_ids] = True
    places = forbidden if rows is None else rows[:, None] & forbidden
    return logits.float().masked_fill(places, -torch.inf)


def sample_tokens(
    logits: Tensor,  # [N, V]
    draws: Tensor,  # [N] uniforms in [0, 1)
    *,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Tensor:  # [N]
    """Draws one token per row: the first whose cumulative probability exceeds its uniform.

    Temperature comes first, then top-k, then top-p (Holtzman et al. 2020) over what is left:
    the smallest set of likeliest tokens whose mass reaches top_p. Ties with the last token kept
    are kept. Probabilities are computed in float32 whatever the type of the logits.

    Args:
        logits: `[N, V]`, in any floating type; not changed. -inf is an impossible token.
        draws: One uniform in [0, 1) per row `[N]`; unused when greedy.
        temperature: At least 0; 0 takes the likeliest token, the first among equals.
        top_p: In (0, 1]; 1 is off.
        top_k: At least 0; 0 is off.

    Returns:
        Token ids `[N]` in int64.

    Raises:
        GenerationError: If a row holds NaN or +inf, or nothing but -inf.
    """
    given, logits = logits, logits.float()
    peak = logits.amax(dim=-1, keepdim=True)  # [N, 1], NaN if any entry is
    if not bool(peak.isfinite().all()):
        raise GenerationError(
            "The model's logits hold NaN or infinity, so no token can be sampled. Check the "
            "weights: a diverged training step or an overflow in float16 are the usual causes."
        )
    if temperature == 0:
        return logits.argmax(dim=-1)
    # Unnormalized probabilities in (0, 1]: the sampler scales its uniform instead of dividing.
    # In place where the conversion to float32 has made a copy: fresh memory costs page faults.
    mass = logits - peak if logits is given else logits.sub_(peak)  # [N, V]
    mass = (mass if temperature == 1 else mass.div_(temperature)).exp_()
    if 0 < top_k < mass.shape[-1]:
        mass.masked_fill_(mass < _largest(mass, top_k)[:, -1:], 0.0)
    if top_p < 1:
        mass.masked_fill_(mass < _nucleus_threshold(mass, top_p), 0.0)
    return _inverse_cdf(mass, draws)


def _mix(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of splitmix64: a bijection of 64-bit integers that scatters its input."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MULTIPLIERS[0]
    bits = (bits ^ (bits >> np.uint64(27))) * _MULTIPLIERS[1]
    return bits ^ (bits >> np.uint64(31))


def _nucleus_threshold(mass: Tensor, top_p: float) -> Tensor:
    """The smallest mass in each row's nucleus `[N, 1]`; rows of `mass` `[N, V]` need not sum to 1.

    Only the likeliest tokens are sorted: first a few, then more for the rows that need more.
    """
    goal = top_p * _sum(mass)  # [N]
    threshold = torch.zeros_like(mass[:, :1])
    open_rows = torch.arange(mass.shape[0], device=mass.device)
    count = _FIRST_CANDIDATES
    while len(open_rows):
        count = min(count, mass.shape[-1])
        largest = _largest(mass[open_rows] if len(open_rows) < len(mass) else mass, count)
        reached = largest.to(goal.dtype).cumsum(dim=-1) >= goal[open_rows, None]  # [n, count]
        # argmax of booleans is the first True; a row that never reaches its goal, which only
        # rounding can cause when all tokens were looked at, keeps everything.
        first = torch.where(reached.any(-1), reached.int().argmax(-1), count - 1)
        threshold[open_rows] = largest.gather(1, first[:, None])
        if count == mass.shape[-1]:
            break
        open_rows = open_rows[~reached[:, -1]]
        count *= _CANDIDATE_GROWTH
    return threshold


def _largest(mass: Tensor, count: int) -> Tensor:
    """The `count` largest values of each row of float32 `mass` `[N, V]`, descending."""
    if mass.device.type != "cpu":
        return mass.topk(count, dim=-1).values
    # numpy partitions and sorts with vector instructions: 5 to 10 times faster than topk.
    values = mass.detach().numpy()
    if count < values.shape[-1]:
        values = np.partition(values, values.shape[-1] - count, axis=-1)[:, -count:]
    return torch.from_numpy(np.sort(values, axis=-1)[:, ::-1].copy())


def _inverse_cdf(mass: Tensor, draws: Tensor) -> Tensor:
    """The first token of each row whose cumulative mass exceeds draw times total, `[N]`."""
    width = mass.shape[-1]
    cumulative = _block_sums(mass).cumsum(dim=-1)  # [N, blocks]
    target = draws.to(cumulative)[:, None] * cumulative[:, -1:]  # [N, 1]
    block = _first_above(cumulative, target)  # [N, 1]
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp_min(0)), 0.0)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=mass.device)  # [N, block]
    inside = mass.gather(1, columns.clamp_max(width - 1)).masked_fill_(columns >= width, 0.0)
    offset = _first_above(inside.to(cumulative.dtype).cumsum(dim=-1), target - before)
    return (block * _BLOCK + offset).squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first column of `cumulative` `[N, M]` above `target` `[N, 1]`, as `[N, 1]`.

    When rounding puts the target at or above the total, the last column that added any mass.
    """
    index = torch.searchsorted(cumulative, target, right=True)
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(index, last)


def _block_sums(mass: Tensor) -> Tensor:
    """Sums of consecutive blocks of columns `[N, ceil(V / block)]`, in float64 where it exists."""
    blocks = mass.shape[-1] // _BLOCK
    whole = blocks * _BLOCK
    sums = mass[:, :whole].reshape(len(mass), blocks, _BLOCK).sum(dim=-1)
    if whole < mass.shape[-1]:
        sums = torch.cat([sums, mass[:, whole:].sum(dim=-1, keepdim=True)], dim=-1)
    return sums.float() if mass.device.type == "mps" else sums.double()


def _sum(mass: Tensor) -> Tensor:
    """Row sums `[N]` in the precision of the block sums."""
    return _block_sums(mass).sum(dim=-1)
