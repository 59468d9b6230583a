"""Prompts of a run: read, counted, and made to fit beside their weight instruction.

The longest instruction counts, so that no draw of weights makes a prompt too long. What is cut is
the end of the user's last text, never the instruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from moodpo.conditioning import Conditioner
from moodpo.data import LoadedPrompts, embedded_prompts, filter_long_prompts, load_prompts
from moodpo.records import Prompt
from moodpo.serving.files import EMBEDDED_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["fit_prompts", "longest_instruction", "read_prompts", "truncate_prompt"]

MAX_PROBES = 256  # weight vectors that are looked at for the longest instruction


def read_prompts(
    source: str,
    *,
    column: str,
    embedded: Literal["train", "heldout"],
    split: str = "train",
    max_samples: int | None = None,
) -> LoadedPrompts:
    """Reads prompts; imports no torch.

    Args:
        source: A file, a Hub dataset, or `embedded`.
        column: Of the prompts.
        embedded: Which of the embedded prompts `embedded` means.
        split: Of a Hub dataset.
        max_samples: At most so many.

    Raises:
        DataError: If they cannot be read or used.
    """
    if source == EMBEDDED_NAME:
        source, column = str(embedded_prompts(embedded)), "prompt"
    return load_prompts(source, prompt_column=column, split=split, max_samples=max_samples)


def fit_prompts(
    loaded: LoadedPrompts,
    conditioner: Conditioner,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    overflow: Literal["drop", "truncate"],
) -> LoadedPrompts:
    """Drops or cuts prompts whose conditioned form is longer than allowed.

    Args:
        loaded: As read.
        conditioner: Writes weights into prompts.
        tokenizer: The policy's.
        max_prompt_length: In tokens, instruction included.
        overflow: `drop` or `truncate`.

    Raises:
        DataError: If nothing is left, or a prompt cannot be cut to fit.
    """
    weights, bounds = longest_instruction(conditioner, tokenizer), conditioner.longest_bounds()
    frame = len(conditioner.encode(tokenizer, "x", weights, bounds))

    def length_of(prompt: Prompt) -> int:
        # A token is at least one byte, so short texts fit without being tokenized.
        if isinstance(prompt, str):
            bound = frame + len(prompt.encode())
            if bound <= max_prompt_length:
                return bound
        return len(conditioner.encode(tokenizer, prompt, weights, bounds))

    def truncate(prompt: Prompt, limit: int) -> Prompt:
        return truncate_prompt(
            prompt,
            lambda text: len(conditioner.encode(tokenizer, text, weights, bounds)) <= limit,
        )

    return filter_long_prompts(
        loaded,
        length_of,
        max_prompt_length=max_prompt_length,
        overflow=overflow,
        truncate=truncate,
    )


def longest_instruction(
    conditioner: Conditioner, tokenizer: PreTrainedTokenizerBase
) -> tuple[float, ...]:
    """The weights, among some that cover the simplex, whose instruction has the most tokens."""
    import torch

    from moodpo.core.simplex import simplex_corners, simplex_lattice

    K = len(conditioner.objectives)
    fine = [d for d in (20, 10, 5, 3, 2) if math.comb(K + d - 1, d) <= MAX_PROBES]
    probes = simplex_lattice(K, fine[0]) if fine else simplex_corners(K)
    signed = torch.tensor([name in conditioner.signed for name in conditioner.objectives])
    probes = torch.cat([probes, torch.where(signed, -probes, probes)])
    return max(
        (tuple(row) for row in probes.tolist()),
        key=lambda weights: len(conditioner.encode(tokenizer, "x", weights)),
    )


def truncate_prompt(prompt: Prompt, fits: Callable[[Prompt], bool]) -> Prompt:
    """The prompt with as much of the beginning of its last user text as fits.

    Args:
        prompt: A text, or a conversation that ends with a user turn.
        fits: Whether a shorter version is short enough.

    Returns:
        A prompt that fits; one of an empty text if none does.
    """
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits, give or take a merge of tokens
        middle = (low + high + 1) // 2
        if fits(_with_text(prompt, text[:middle])):
            low = middle
        else:
            high = middle - 1
    return _with_text(prompt, text[:low].rstrip())


def _with_text(prompt: Prompt, text: str) -> Prompt:
    if isinstance(prompt, str):
        return text
    turns: Sequence[dict[str, str]] = [dict(turn) for turn in prompt]
    return [*turns[:-1], {**turns[-1], "content": text}]
