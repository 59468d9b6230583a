"""Lengths: prompts that fit beside their weight instruction, and with it into the model.

The longest instruction counts, so that no draw of weights makes a prompt too long. What is cut is
the end of the user's last text, never the instruction. Imports no torch until prompts are fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from moodpo.conditioning.instruction import Conditioner
from moodpo.data.messages import shortened
from moodpo.data.prompts import LoadedPrompts, count_duplicates, join_columns
from moodpo.data.rows import PROMPT
from moodpo.errors import ConfigError, DataError
from moodpo.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "check_lengths",
    "filter_long_prompts",
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


def filter_long_prompts(
    loaded: LoadedPrompts,
    length_of: Callable[[Prompt], int],
    *,
    max_prompt_length: int,
    overflow: Literal["drop", "truncate"],
    truncate: Callable[[Prompt, int], Prompt] | None = None,
) -> LoadedPrompts:
    """Drop or shorten the prompts that are too long, and count them.

    Args:
        loaded: What `load_prompts` gave.
        length_of: Tokens of a prompt once conditioned: the weight instruction counts.
        max_prompt_length: Tokens, at most.
        overflow: What happens to a longer prompt.
        truncate: `truncate(prompt, max_prompt_length)` shortens the user's text, never the
            instruction; needed for `overflow="truncate"`, and its answer is measured again.

    Raises:
        DataError: If nothing would be left, or truncation cannot make a prompt fit.
        ConfigError: If the arguments cannot work together.
    """
    _check_overflow(max_prompt_length, overflow, truncate)
    prompts = loaded.prompts
    lengths = _lengths(loaded, prompts, length_of)
    num_long = sum(length > max_prompt_length for length in lengths)
    if num_long == 0:
        return loaded
    if overflow == "drop" or truncate is None:
        return _drop_long(loaded, prompts, lengths, max_prompt_length)
    cut = [
        _truncated(prompt, loaded.place(i), length_of, truncate, max_prompt_length)
        if lengths[i] > max_prompt_length
        else prompt
        for i, prompt in enumerate(prompts)
    ]
    names = [name for name in loaded.dataset.column_names if name != PROMPT]
    others = loaded.dataset.select_columns(names) if names else None
    report = replace(
        loaded.report,
        too_long_truncated=loaded.report.too_long_truncated + num_long,
        duplicates=count_duplicates(cut),
    )
    return replace(loaded, dataset=join_columns(cut, others), report=report)


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


def _check_overflow(max_prompt_length: int, overflow: str, truncate: object) -> None:
    if max_prompt_length < 1:
        raise ConfigError(f"max_prompt_length is {max_prompt_length}: expected at least 1 token.")
    if overflow not in ("drop", "truncate"):
        raise ConfigError(f"overflow is {overflow!r}: expected 'drop' or 'truncate'.")
    if overflow == "truncate" and truncate is None:
        raise ConfigError("overflow is 'truncate' but no truncate function was given: pass one.")


def _drop_long(
    loaded: LoadedPrompts, prompts: Sequence[Prompt], lengths: Sequence[int], limit: int
) -> LoadedPrompts:
    keep = [i for i, length in enumerate(lengths) if length <= limit]
    if not keep:
        raise DataError(
            f"{loaded.report.source}: all {len(lengths)} prompts are longer than "
            f"max_prompt_length = {limit} tokens; with the weight instruction the shortest has "
            f"{min(lengths)} and the longest {max(lengths)}. Raise --max_prompt_length to at "
            f"least {min(lengths)}, or shorten the prompts."
        )
    report = replace(
        loaded.report,
        kept=len(keep),
        too_long_dropped=loaded.report.too_long_dropped + len(lengths) - len(keep),
        duplicates=count_duplicates([prompts[i] for i in keep]),
    )
    places = tuple(loaded.place(i) for i in keep)
    return replace(loaded, dataset=loaded.dataset.select(keep), report=report, places=places)


def _lengths(
    loaded: LoadedPrompts, prompts: Sequence[Prompt], length_of: Callable[[Prompt], int]
) -> list[int]:
    """N lengths in tokens; what refuses a prompt is told with its row."""
    lengths = []
    for i, prompt in enumerate(prompts):
        try:
            lengths.append(length_of(prompt))
        except DataError as error:
            raise DataError(f"{loaded.report.source}, {loaded.place(i)}: {error}") from error
    return lengths


def _truncated(
    prompt: Prompt,
    place: str,
    length_of: Callable[[Prompt], int],
    truncate: Callable[[Prompt, int], Prompt],
    limit: int,
) -> Prompt:
    """A prompt cut to fit, checked: what does not fit would lose its instruction later."""
    shorter = truncate(prompt, limit)
    length = length_of(shorter)
    text = shorter if isinstance(shorter, str) else shorter[-1]["content"]
    if length > limit or not text.strip():
        raise DataError(
            f"{place}: the prompt {shortened(prompt)} cannot be cut to max_prompt_length = {limit} "
            f"tokens: {length} are left and {len(text.strip())} characters of text. "
            "Raise --max_prompt_length, or drop long prompts instead."
        )
    return shorter
