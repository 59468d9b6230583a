"""Between tokens and text: which end a completion, pad or are none, how they read, how many.

Knows nothing of sampling. Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from moodpo.generation.base import Completion
from moodpo.models.chat_templates import turn_end_token
from moodpo.models.tokens import first_valid_id, head_rows, read_token_ids, valid_ids
from moodpo.records import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


__all__ = [
    "TokenRoles",
    "completion_text",
    "count_tokens",
    "end_token_ids",
    "padding_token_id",
    "read_answer",
    "token_roles",
    "unknown_token_ids",
]


class TokenRoles(TypedDict):
    """Arguments of `HFGenerator` that follow from a model and its tokenizer."""

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    forbidden_token_ids: tuple[int, ...]


def token_roles(model: Any, tokenizer: PreTrainedTokenizerBase) -> TokenRoles:
    """Which tokens end a completion, which one pads, and which are never drawn."""
    return {
        "eos_token_ids": end_token_ids(model, tokenizer),
        "pad_token_id": padding_token_id(tokenizer, model),
        "forbidden_token_ids": unknown_token_ids(model, tokenizer),
    }


def end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a completion: the model's own, the tokenizer's, the chat template's.

    The template's is the control token with which it closes an assistant's turn: in ChatML on a
    base model the tokenizer's own end of sequence is another, and would never come.

    Args:
        model: May carry a `generation_config` or a `config`, whose ids may be in any container.
        tokenizer: The policy's.

    Returns:
        Token ids in ascending order, without those that the model has no embedding for; none if
        nothing names one.
    """
    configured = _end_ids(model, "generation_config") or _end_ids(model, "config")
    ids = {*configured, *read_token_ids(tokenizer.eos_token_id)}
    if (turn_end := _turn_end_id(tokenizer)) is not None:
        ids.add(turn_end)
    return tuple(sorted(valid_ids(ids, model)))


def padding_token_id(tokenizer: PreTrainedTokenizerBase, model: Any) -> int:
    """The padding token if the model can read it; else any other token that it can.

    Padding is masked everywhere, so one is as good as another.
    """
    named = (tokenizer.pad_token_id, getattr(tokenizer, "eos_token_id", None))
    return first_valid_id(named, model)


def unknown_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that the model has logits for and the tokenizer no token.

    Embeddings are often padded to a multiple of some power of two; what is drawn there reads as
    nothing.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.

    Returns:
        Token ids in ascending order; none where tokenizer and model fit.
    """
    known = set(tokenizer.get_vocab().values())
    rows = range(head_rows(model) or 0)
    return tuple(i for i in rows if i not in known and not _reads_as_text(tokenizer, i))


def read_answer(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> Answer:
    """A sampled completion with its text, as `completion_text` reads it.

    Args:
        tokenizer: The policy's.
        completion: From a backend.
    """
    text = completion_text(tokenizer, completion)
    return Answer(text, completion.token_ids, completion.finished, completion.logps)


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each of N texts whose own are not known, special tokens not counted."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    return [len(ids) for ids in encoded["input_ids"]]


def completion_text(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> str:
    """What a completion says, without special tokens and without the end of its turn.

    The token that a chat template closes a turn with need not be listed as special.
    """
    ids = completion.token_ids
    if completion.finished and ids[-1] == _turn_end_id(tokenizer):
        ids = ids[:-1]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    token = turn_end_token(tokenizer)
    return None if token is None else int(tokenizer.convert_tokens_to_ids(token))


def _end_ids(model: Any, config: str) -> tuple[int, ...]:
    return read_token_ids(getattr(getattr(model, config, None), "eos_token_id", None))


def _reads_as_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bool:
    """Whether an id that no token is listed under is one after all: some pieces are there twice."""
    try:
        return bool(tokenizer.decode([token_id]))
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):  # out of its range
        return False
