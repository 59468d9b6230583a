"""Tokens of completions as one batch: padded, or several completions behind one prompt.

Knows nothing of text or models. Shapes: N sequences, S positions, M completion tokens of all
sequences together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from moodpo.records import TokenIds

__all__ = ["TokenBatch", "collate_pairs", "collate_sequences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Sequences for one forward pass, and where their completion tokens are predicted.

    `predictors` are flat positions `n * S + s` whose hidden state predicts the matching entry of
    `targets`; `owners` says which completion each belongs to.
    """

    input_ids: Tensor  # [N, S]
    predictors: Tensor  # [M] flat positions into N * S
    targets: Tensor  # [M] the completion tokens
    owners: Tensor  # [M] index of the completion, 0 .. num_completions - 1
    num_completions: int
    attention_mask: Tensor | None = None  # [N, S], or [N, 1, S, S] bool for shared prompts
    position_ids: Tensor | None = None  # [N, S]

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)  # type: ignore[arg-type]


def collate_sequences(
    prompt_ids: Sequence[TokenIds], completion_ids: Sequence[TokenIds], *, pad_token_id: int
) -> TokenBatch:
    """Pads `prompt + completion` sequences on the right, one completion per sequence.

    Right padding needs neither an attention mask nor position ids: under causal attention no real
    token sees what follows it, and attention kernels keep their fast causal path.

    Args:
        prompt_ids: N prompts, at least one token each.
        completion_ids: N completions, at least one token each.
        pad_token_id: Any valid token id.

    Returns:
        A batch with N completions.
    """
    sequences = [(*p, *c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    width = max(map(len, sequences))
    predictors: list[int] = []
    owners: list[int] = []
    for row, (prompt, completion) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        start = row * width + len(prompt) - 1
        predictors.extend(range(start, start + len(completion)))
        owners.extend([row] * len(completion))
    padded = [(*s, *(pad_token_id,) * (width - len(s))) for s in sequences]
    return TokenBatch(
        input_ids=torch.tensor(padded),
        predictors=torch.tensor(predictors),
        targets=torch.tensor([token for c in completion_ids for token in c]),
        owners=torch.tensor(owners),
        num_completions=len(completion_ids),
    )


def collate_pairs(
    prompt_ids: Sequence[TokenIds],
    completion_ids: Sequence[tuple[TokenIds, ...]],
    *,
    pad_token_id: int,
) -> TokenBatch:
    """Packs each prompt once with all its completions: `prompt + A + B` in one sequence.

    B continues the prompt as if A were not there: a block mask hides A from B, and B's positions
    restart where the prompt ended. The prompt is computed once instead of once per completion,
    and the result is exact where every layer is full attention that reads a 4-D mask and position
    ids. Whether a model's are must be tried: windows, recurrent states and ALiBi are not.

    Args:
        prompt_ids: N prompts, at least one token each.
        completion_ids: N tuples of completions, at least one token each.
        pad_token_id: Any valid token id.

    Returns:
        A batch whose completions are numbered row by row: `0 .. N * 2 - 1` for pairs.
    """
    rows = [
        (*p, *(t for c in cs for t in c)) for p, cs in zip(prompt_ids, completion_ids, strict=True)
    ]
    size, width = len(rows), max(map(len, rows))
    segments = torch.zeros(size, width, dtype=torch.long)  # 0 prompt, 1.. completions, -1 padding
    positions = torch.zeros(size, width, dtype=torch.long)
    predictors: list[int] = []
    owners: list[int] = []
    targets: list[int] = []
    completion = 0
    for row, (prompt, parts) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        cursor = len(prompt)
        positions[row, :cursor] = torch.arange(cursor)
        for segment, part in enumerate(parts, start=1):
            end = cursor + len(part)
            segments[row, cursor:end] = segment
            positions[row, cursor:end] = torch.arange(len(prompt), len(prompt) + len(part))
            # A completion's first token is predicted by the prompt's last one.
            predictors.append(row * width + len(prompt) - 1)
            predictors.extend(range(row * width + cursor, row * width + end - 1))
            targets.extend(part)
            owners.extend([completion] * len(part))
            completion += 1
            cursor = end
        segments[row, cursor:] = -1
    return TokenBatch(
        input_ids=torch.tensor([(*r, *(pad_token_id,) * (width - len(r))) for r in rows]),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        num_completions=completion,
        attention_mask=_block_mask(segments),
        position_ids=positions,
    )


def _block_mask(segments: Tensor) -> Tensor:
    """Who sees whom: `[N, 1, S, S]` bool. Causal, and completions see the prompt and themselves."""
    width = segments.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    prompt = segments[:, None, :] == 0
    return ((same | prompt) & causal)[:, None]
