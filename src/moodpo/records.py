"""What flows between the rooms: frozen records with their shapes beside the fields.

Knows nothing of models or files. Shapes: B prompts, M weight vectors that each prompt is sampled
under (1 by default), g completions under each (2 by default), G = M * g completions of a prompt,
L weight vectors that a prompt's completions are labeled under, K objectives, P training pairs.
Token ids are ragged tuples of Python ints: padding is a matter of whoever builds a tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "Answer",
    "Completion",
    "Message",
    "PairBatch",
    "Prompt",
    "PromptBatch",
    "RolloutBatch",
    "TokenIds",
    "dialogue_text",
    "prompt_text",
]

Message: TypeAlias = Mapping[str, str]
"""One chat turn: `{"role": ..., "content": ...}`."""

Prompt: TypeAlias = str | Sequence[Message]
"""A raw prompt: one user text, or a conversation that ends with a user turn."""

TokenIds: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion."""

    token_ids: TokenIds  # the end-of-sequence token included when finished, never padding
    finished: bool  # ended by itself rather than at a length limit
    logps: tuple[float, ...] | None = None  # of each token in nats, where the backend gives them


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy said to one prompt: the tokens that were sampled, and what they read as.

    A text does not give its tokens back: the end is not in it, and it may be written with others.
    So lengths and log-probabilities are those of `token_ids`, wherever these are known.
    """

    text: str  # special tokens removed
    token_ids: TokenIds | None = None  # end-of-sequence token included; None: only text is known
    finished: bool | None = None  # ended by itself rather than at the length limit
    logps: tuple[float, ...] | None = None  # of each token in nats, where the backend gives them


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch:
    """Raw prompts of one optimizer step, with the data columns that came along."""

    prompts: Sequence[Prompt]  # B
    indices: Sequence[int]  # B: each prompt's place in the global batch, the key of its randomness
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # name -> B values

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutBatch:
    """Scored completions of B prompts, each under M weight vectors.

    The G = M * g completions of a prompt are candidates for one another's pairs: completion
    `i = m * g + j` of a prompt is the j-th under its m-th weights.
    """

    prompts: Sequence[Prompt]  # B raw prompts: never the weight instruction
    labels: Tensor  # [B, L, K] weights on the simplex; the first M were sampled under
    prompt_ids: Sequence[tuple[TokenIds, ...]]  # B x M conditioned prompts
    completions: Sequence[tuple[tuple[Completion, ...], ...]]  # B x M x g
    texts: Sequence[tuple[tuple[str, ...], ...]]  # B x M x g, special tokens removed
    rewards: Tensor  # [B, M, g, K] raw scores, NaN where a scorer gave none

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def weights(self) -> Tensor:
        """The weights `[B, M, K]` that completions were sampled under."""
        return self.labels[:, : self.rewards.shape[1]]

    @property
    def candidates(self) -> list[tuple[Completion, ...]]:
        """All completions of each prompt `B x G`, whatever weights they were sampled under."""
        return [tuple(itertools.chain.from_iterable(row)) for row in self.completions]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch:
    """Training pairs: column 0 is chosen, column 1 rejected. Only active pairs are kept."""

    prompt_ids: Sequence[TokenIds]  # P conditioned prompts
    completion_ids: Sequence[tuple[TokenIds, TokenIds]]  # P x (chosen, rejected)
    weights: Tensor  # [P, K] the weights written into each conditioned prompt
    rewards: Tensor  # [P, 2, K] raw scores, chosen first
    utilities: Tensor  # [P, 2] scalarized normalized rewards, chosen first
    rows: Tensor  # [P] int64: the prompt each pair came from, 0 .. B - 1
    labelings: Tensor  # [P] int64: which of its prompt's weight vectors, 0 .. L - 1
    candidates: Tensor  # [P, 2] int64: which of the prompt's G completions, chosen first
    relabeled: Tensor  # [P, 2] bool: completions that were sampled under other weights
    ref_logps: Tensor | None = None  # [P, 2] once the reference has been asked

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def to(self, device: torch.device | str) -> PairBatch:
        """The same pairs with their tensors on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def select(self, rows: Sequence[int]) -> PairBatch:
        """The pairs at the given rows, in that order."""
        chosen = list(rows)
        return replace(
            self._map(lambda tensor: tensor[chosen]),
            prompt_ids=[self.prompt_ids[i] for i in chosen],
            completion_ids=[self.completion_ids[i] for i in chosen],
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: change(value)
            for name, value in values.items()
            if value is not None and not isinstance(value, Sequence)
        }
        return replace(self, **changed)


def prompt_text(prompt: Prompt) -> str:
    """What the user asked last: a prompt as tables and reports show it.

    Args:
        prompt: One text, or a conversation that ends with a user turn.

    Returns:
        The text itself, or the content of the conversation's last user turn.
    """
    if isinstance(prompt, str):
        return prompt
    return next(turn["content"] for turn in reversed(prompt) if turn["role"] == "user")


def dialogue_text(prompt: Prompt) -> str:
    """All that a prompt says: a text itself, or the contents of all turns, blank lines between."""
    return prompt if isinstance(prompt, str) else "\n\n".join(turn["content"] for turn in prompt)
