"""Tokens: a conversation → the ids that a policy reads, up to where its answer starts.

Text can never become control tokens: see `models.chat_templates.encode_messages`, which does the
work. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moodpo.errors import DataError, one_line
from moodpo.models.chat_templates import encode_messages
from moodpo.records import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_conversation"]


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    template_kwargs: Mapping[str, Any] | None = None,
) -> TokenIds:
    """Token ids of a conversation, special tokens included.

    Args:
        tokenizer: The policy's.
        messages: An optional system turn, then user and assistant turns.
        template_kwargs: Values for variables of the chat template.

    Raises:
        DataError: If the chat template refuses the conversation.
    """
    try:
        return encode_messages(tokenizer, messages, template_kwargs)
    except Exception as error:
        if (refusal := _refusal(messages, error)) is not None:
            raise refusal from error
        raise


def _refusal(messages: Sequence[Mapping[str, str]], error: Exception) -> DataError | None:
    """What to say of a conversation that its chat template refused; None of other errors."""
    from moodpo._upstream import template_error  # not at the top: it takes long to import

    if not isinstance(error, template_error()):
        return None
    said = one_line(error)
    roles = ", ".join(turn["role"] for turn in messages)
    return DataError(
        f"the policy's chat template refuses the conversation: {said}. Change its turns ({roles}), "
        "or the template."
    )
