"""One prompt, whoever passes it: a text, or a conversation that ends with a user turn.

Files, data sets and Python callers are checked by the same rules and refused in the same words.
Knows nothing of files, tokenizers or models. Shapes: N prompts.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from moodpo.errors import DataError
from moodpo.records import Prompt

__all__ = ["ROLES", "as_prompt", "as_prompts", "check_prompts", "listed", "shortened"]

ROLES = ("system", "user", "assistant")


def as_prompts(given: object) -> list[Prompt]:
    """What a Python caller passes as prompts: one of them, or N.

    Args:
        given: A text, a conversation, one message of the user, or N prompts in a list or anything
            else that gives its values in order (an array, a column of a data set).

    Returns:
        N prompts, as `as_prompt` gives them.

    Raises:
        DataError: If something else was passed, or a prompt cannot be one; the message says which.
    """
    if isinstance(given, str):
        given = [given]
    elif isinstance(given, Mapping):
        if "role" not in given:
            raise DataError(
                f"The prompts are a mapping with the keys {listed(list(given))}: expected a text, "
                "a conversation, or a list of them. Pass one column of it, such as data['prompt']."
            )
        given = [[given]]
    items = _items(given)
    if items and all(isinstance(item, Mapping) for item in items):
        if all("role" not in item and "prompt" in item for item in items):
            raise DataError(
                "The prompts are rows of a data set: expected its texts or conversations. Pass "
                "the column alone, such as data['prompt']."
            )
        items = [items]
    prompts = []
    for number, prompt in enumerate(check_prompts(items, _nth, mixed=True), start=1):
        if prompt is None:
            raise DataError(
                f"Prompt {number} of {len(items)} holds no text: expected a text or a "
                "conversation whose last turn says something. Remove it."
            )
        prompts.append(prompt)
    return prompts


def check_prompts(
    values: Iterable[object], place: Callable[[int], str], *, mixed: bool = False
) -> list[Prompt | None]:
    """Raw values as prompts.

    Args:
        values: N of them.
        place: Index of a value → how a message names it.
        mixed: Whether texts and conversations may stand side by side: one column of a table holds
            one kind.

    Returns:
        N prompts, None where there is no text.

    Raises:
        DataError: Naming the first value that cannot be a prompt.
    """
    prompts: list[Prompt | None] = []
    kind: type | None = None
    for index, value in enumerate(values):
        try:
            prompt = as_prompt(value)
            kind = kind or (None if prompt is None or mixed else type(prompt))
            if prompt is not None and kind not in (None, type(prompt)):
                raise DataError(
                    "texts and conversations are mixed in the prompt column: expected one kind. "
                    "Write a text as [{'role': 'user', 'content': '…'}]."
                )
        except DataError as error:
            raise DataError(f"{place(index)}: {error}") from None
        prompts.append(prompt)
    return prompts


def as_prompt(value: object) -> Prompt | None:
    """A raw value as a prompt, None if it holds no text.

    Args:
        value: A text, or a conversation: a list of `{"role", "content"}`; other keys are dropped.

    Raises:
        DataError: If it is something else, or a conversation that the policy cannot go on with.
    """
    if value is None:
        return None
    if isinstance(value, str):
        _check_characters(value)
        return value if value.strip() else None
    if isinstance(value, Mapping) and "role" in value:
        raise DataError(
            f"the prompt is one message ({shortened(value)}): expected text or a list of "
            "messages. Put the message into a list."
        )
    turns = value.tolist() if hasattr(value, "tolist") else value  # an array of messages
    if isinstance(turns, list | tuple):
        return _as_conversation(turns)
    raise DataError(
        f"the prompt is {shortened(value)} ({type(value).__name__}): expected text or a list of "
        "messages. Store prompts as text."
    )


def listed(names: Sequence[object], *, at_most: int = 12) -> str:
    """Names for a message, the first of them."""
    shown = ", ".join(shortened(name) for name in names[:at_most])
    more = len(names) - at_most
    return f"{shown} and {more} more" if more > 0 else shown


def shortened(value: object, *, at_most: int = 60) -> str:
    """A value for a message: on one line, never long, however deep it nests."""
    text = repr(value[: at_most + 1]) if isinstance(value, str) else reprlib.repr(value)
    text = " ".join(text.split("\n"))
    return text if len(text) <= at_most else f"{text[: at_most - 1]}…"


def _items(given: object) -> list[Any]:
    """The values of what holds N prompts, in order."""
    if hasattr(given, "columns") and hasattr(given, "shape"):
        raise DataError(
            f"The prompts are a table ({type(given).__name__}) with the columns "
            f"{listed(list(given.columns))}: expected texts or conversations. Pass one column, "
            "such as table['prompt'].tolist()."
        )
    if hasattr(given, "tolist"):  # an array, or a column of a table
        values = given.tolist()
        return values if isinstance(values, list) else [values]
    if isinstance(given, Iterable) and not isinstance(given, bytes | set | frozenset):
        return list(given)
    raise DataError(
        f"The prompts are {shortened(given)} ({type(given).__name__}): expected a text, a "
        "conversation (a list of messages), or a list of them."
    )


def _nth(index: int) -> str:
    return f"prompt {index + 1}"


def _as_conversation(turns: Sequence[object]) -> Prompt | None:
    messages = [_as_message(turn, number) for number, turn in enumerate(turns, start=1)]
    if not messages:
        return None
    if messages[-1]["role"] != "user":
        raise DataError(
            f"the conversation ends with a turn of the {messages[-1]['role']}: expected a user "
            "turn, since the policy writes the next one. Remove what follows the last user turn."
        )
    return messages if messages[-1]["content"].strip() else None


def _as_message(turn: object, number: int) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise DataError(
            f"turn {number} is {shortened(turn)}: expected {{'role': …, 'content': …}}. "
            "Convert the conversation."
        )
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(
            f"turn {number} has the role {shortened(role)} and the keys {listed(list(turn))}: "
            f"expected 'role' to be one of {listed(ROLES)}. Rename keys and roles."
        )
    if not isinstance(content, str):
        raise DataError(
            f"turn {number} has the content {shortened(content)}: expected text. Images and parts "
            "are not supported; keep the text alone."
        )
    _check_characters(content)
    return {"role": str(role), "content": content}


def _check_characters(text: str) -> None:
    """Refuse what tokenizers and files cannot hold."""
    if "\0" in text:
        raise DataError("the prompt has a NUL character: expected text without. Remove it.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start + 1} of the prompt is half of a surrogate pair, or a byte "
            "that is not UTF-8: expected whole characters. Write the text again as UTF-8."
        ) from None
