"""Between tokens and text: which tokens end a completion, which pad, how they read, how many.

Knows nothing of sampling. Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moodpo.generation.base import Completion
from moodpo.records import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["count_tokens", "end_token_ids", "padding_token_id", "read_answer"]


def end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token that ends a completion: the model's own, however many, and the tokenizer's.

    Args:
        model: May carry a `generation_config`.
        tokenizer: The policy's.

    Returns:
        Token ids in ascending order; none if neither knows one.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None}))


def padding_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token; token 0 without one, which is as good: padding is masked everywhere."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def read_answer(tokenizer: PreTrainedTokenizerBase, completion: Completion) -> Answer:
    """A sampled completion with its text; special tokens are not in the text.

    Args:
        tokenizer: The policy's.
        completion: From a backend.
    """
    text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    return Answer(text, completion.token_ids, completion.finished, completion.logps)


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Tokens of each of N texts whose own are not known, special tokens not counted."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    return [len(ids) for ids in encoded["input_ids"]]
