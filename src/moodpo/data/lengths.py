"""Lengths: prompts that fit beside their weight instruction, and with it into the model.

The longest instruction counts, so that no draw of weights makes a prompt too long. What is cut is
the end of the user's last text, never the instruction. Imports no
torch until prompts are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from moodpo.conditioning.instruction import Conditioner
from moodpo.data.prompts import LoadedPrompts, filter_long_prompts
from moodpo.errors import ConfigError
from moodpo.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "check_lengths",
    "fit_prompts",
    "longest_instruction",
    "max_positions",
    "truncate_prompt",
]

MAX_PROBES = 256  # weight vectors that are looked at for the longest instruction
_MAX_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model can attend to, where its `config.json` says so."""
    config = {**(config.get("text_config") or {}), **config}
    found = (config.get(name) for name in _MAX_POSITIONS)
    return next((int(n) for n in found if isinstance(n, int) and n > 0), None)


def check_lengths(
    name: str, limit: int | None, *, max_prompt_length: int, max_new_tokens: int
) -> None:
    """Refuses lengths that the model's positions cannot hold.

    Args:
        name: Of the model, for the message.
        limit: Its positions; None where they are not known.
        max_prompt_length: In tokens, instruction included.
        max_new_tokens: Of a completion.

    Raises:
        ConfigError: With the longest prompt that leaves room.
    """
    if limit is None or max_prompt_length + max_new_tokens <= limit:
        return
    room = limit - max_new_tokens
    remedy = (
        f"Set max_prompt_length to {room} or less."
        if room > 0
        else f"Set max_new_tokens below {limit}."
    )
    raise ConfigError(
        f"{name} has {limit} positions, but max_prompt_length {max_prompt_length} + "
        f"max_new_tokens {max_new_tokens} = {max_prompt_length + max_new_tokens}. {remedy}"
    )


def fit_prompts(
    loaded: LoadedPrompts,
    conditioner: Conditioner,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    overflow: Literal["drop", "truncate"],
) -> LoadedPrompts:
    """Drops or cuts prompts whose conditioned form is longer than allowed.

    Prompts that were fitted to the same limit before are given back as they are.

    Args:
        loaded: As read.
        conditioner: Writes weights into prompts.
        tokenizer: The policy's.
        max_prompt_length: In tokens, instruction included.
        overflow: `drop` or `truncate`.

    Raises:
        DataError: If nothing is left, a prompt cannot be cut to fit, or the policy's chat template
            refuses a conversation.
    """
    fit = (conditioner, tokenizer, max_prompt_length, overflow)
    if loaded.fitted_to == fit:
        return loaded
    weights = longest_instruction(conditioner, tokenizer)
    frame = len(conditioner.encode(tokenizer, "x", weights))

    def length_of(prompt: Prompt) -> int:
        # A token is at least one byte, so short texts fit without being tokenized.
        if isinstance(prompt, str):
            bound = frame + len(prompt.encode())
            if bound <= max_prompt_length:
                return bound
        return len(conditioner.encode(tokenizer, prompt, weights))

    def truncate(prompt: Prompt, limit: int) -> Prompt:
        return truncate_prompt(
            prompt,
            lambda text: len(conditioner.encode(tokenizer, text, weights)) <= limit,
        )

    fitted = filter_long_prompts(
        loaded,
        length_of,
        max_prompt_length=max_prompt_length,
        overflow=overflow,
        truncate=truncate,
    )
    return replace(fitted, fitted_to=fit)


def longest_instruction(
    conditioner: Conditioner, tokenizer: PreTrainedTokenizerBase
) -> tuple[float, ...]:
    """The weights, among some that cover the simplex, whose instruction has the most tokens."""
    from moodpo.core.simplex import simplex_corners, simplex_lattice

    K = len(conditioner.objectives)
    fine = [d for d in (20, 10, 5, 3, 2) if math.comb(K + d - 1, d) <= MAX_PROBES]
    probes = simplex_lattice(K, fine[0]) if fine else simplex_corners(K)
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
