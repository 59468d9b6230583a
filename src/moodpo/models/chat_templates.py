"""Chat templates: a conversation → token ids, and what a template says of turns and of the date.

Text can never become control tokens here, whatever it spells. Knows nothing of weights or models.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moodpo.errors import ConfigError
from moodpo.records import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "PLAIN_FORMAT",
    "RESERVED_KWARGS",
    "chat_template_of",
    "encode_messages",
    "read_template_kwargs",
    "turn_end_token",
    "warn_of_dates",
    "writes_the_date",
]

PLAIN_FORMAT = "{system}Human: {prompt}\n\nAssistant:"
"""How a prompt reads for a model without a chat template; `system` ends with a blank line."""

RESERVED_KWARGS = frozenset(
    (
        *("conversation", "conversations", "messages", "chat_template", "tokenizer_kwargs"),
        *("add_generation_prompt", "continue_final_message", "sanitize_control_tokens"),
        *("tokenize", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
    )
)
"""What `apply_chat_template` takes for itself, and we set."""

# Private-use characters: no tokenizer merges them, no template trims them, no text means them.
_MARK = "\ue002"


def read_template_kwargs(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """Reads values for a chat template, such as `{"enable_thinking": false}`.

    Args:
        given: JSON text of an object, or a mapping of what JSON can write.

    Returns:
        A dictionary of its own; empty where nothing was given.

    Raises:
        ConfigError: If it is no JSON object, or names what `apply_chat_template` takes for itself.
    """
    example = """as in '{"enable_thinking": false}'"""
    try:
        # Text even where it was a mapping: moodpo.json must be able to hold it.
        text = given if isinstance(given, str) else json.dumps(dict(given or {}))
        values = json.loads(text) if text.strip() else {}
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Cannot read chat_template_kwargs {given!r}: {error}. Write a JSON object, {example}."
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"chat_template_kwargs must be a JSON object, {example}; got {given!r}.")
    if reserved := sorted(values.keys() & RESERVED_KWARGS):
        raise ConfigError(
            f"chat_template_kwargs cannot set {reserved[0]!r}: it is no variable of a template but "
            "an argument that moodpo passes itself. Leave it out."
        )
    return values


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template; of several named ones, `default`.

    Returns:
        Jinja text, or None without a template.

    Raises:
        ConfigError: If there are several and none is the default.
    """
    template: Any = getattr(tokenizer, "chat_template", None)
    if isinstance(template, (list, tuple)):  # as older tokenizer_config.json write them
        template = {each["name"]: each["template"] for each in template}
    if isinstance(template, Mapping):
        if template and "default" not in template:
            raise ConfigError(
                f"The tokenizer has the chat templates {', '.join(sorted(template))}, and none is "
                "named 'default'. Save a tokenizer whose chat_template is the one to use."
            )
        template = template.get("default")
    return template or None


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    template_kwargs: Mapping[str, Any] | None = None,
) -> TokenIds:
    """Tokenizes a conversation with a generation prompt, safe against injected control tokens.

    Args:
        tokenizer: With a chat template, or without one (then `PLAIN_FORMAT` is used, earlier
            turns written as `Human:` / `Assistant:` too).
        messages: An optional system turn, then user and assistant turns.
        template_kwargs: Values for variables of the chat template.

    Returns:
        Token ids.
    """
    control = _control_tokens(tokenizer)
    # A stand-in from the private use area cannot be merged, trimmed or mistaken for a token.
    suspicious = [any(mark in m["content"] for mark in (*control, "\ue000")) for m in messages]
    stand_ins = {
        f"\ue000{i}\ue001": m["content"]
        for i, (m, odd) in enumerate(zip(messages, suspicious, strict=True))
        if odd
    }
    keys = iter(stand_ins)
    safe = [
        {**m, "content": next(keys)} if odd else dict(m)
        for m, odd in zip(messages, suspicious, strict=True)
    ]
    template = chat_template_of(tokenizer)
    text = _render(tokenizer, template, safe, template_kwargs or {})
    ids: list[int] = []
    for piece in _split_at(text, list(stand_ins)):
        literal = piece in stand_ins
        text = stand_ins.get(piece, piece)
        ids.extend(
            tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
        )
    if template is None:
        prefix = tokenizer("")["input_ids"]
        # Only a leading BOS: a plain prompt continues, so nothing may end it.
        ids = [t for t in prefix if t == tokenizer.bos_token_id][:1] + ids
    return tuple(ids)


def turn_end_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The control token with which the chat template closes an assistant's turn.

    Often another than the tokenizer's end of sequence: `<|im_end|>` in a ChatML template on a base
    model. Found by writing a conversation and reading what follows the assistant's text.

    Returns:
        The token, or None where there is no template, it writes no answers, or ordinary text
        follows an answer.
    """
    template = chat_template_of(tokenizer)
    return None if template is None else _turn_end(template, tokenizer)


def writes_the_date(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None
) -> bool:
    """Whether prompts depend on the day they are written on.

    Args:
        tokenizer: The policy's.
        template_kwargs: Values for variables of the chat template, which may fix the date.
    """
    template = chat_template_of(tokenizer)
    if template is None or "strftime_now" not in template:
        return False
    # A macro goes before the function of that name that transformers offers.
    marked = f"{{%- macro strftime_now(format) -%}}{_MARK}{{%- endmacro -%}}{template}"
    probe = [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]
    return _MARK in _render(tokenizer, marked, probe, template_kwargs or {})


def warn_of_dates(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any] | None = None
) -> None:
    """Warns, naming the remedy, where `writes_the_date`."""
    if not writes_the_date(tokenizer, template_kwargs):
        return
    fixed = {"date_string": "01 Jan 2026"}
    takes_one = not writes_the_date(tokenizer, {**(template_kwargs or {}), **fixed})
    remedy = (
        f"Fix the date: --chat_template_kwargs '{json.dumps(fixed)}'."
        if takes_one
        else "Save a tokenizer whose chat_template does not call strftime_now."
    )
    warnings.warn(
        "The chat template writes today's date into every prompt, so that a resumed run, an "
        f"evaluation or an answer on another day reads other prompts. {remedy}",
        stacklevel=2,
    )


def _render(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    messages: Sequence[Mapping[str, str]],
    template_kwargs: Mapping[str, Any],
) -> str:
    if template is None:
        return _plain_conversation(messages)
    if messages[0]["role"] == "system":
        values = json.dumps(dict(template_kwargs), sort_keys=True)
        if not _has_system_role(template, tokenizer, values):
            messages = _fold_system(messages)
    return str(
        tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **template_kwargs,
        )
    )


def _plain_conversation(messages: Sequence[Mapping[str, str]]) -> str:
    speakers = {"user": "Human", "assistant": "Assistant"}
    system = "".join(f"{m['content']}\n\n" for m in messages if m["role"] == "system")
    turns = [m for m in messages if m["role"] != "system"]
    earlier = "".join(f"{speakers[m['role']]}: {m['content']}\n\n" for m in turns[:-1])
    return PLAIN_FORMAT.format(system=system + earlier, prompt=turns[-1]["content"])


def _fold_system(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    first, *rest = (dict(m) for m in messages[1:])
    return [{**first, "content": f"{messages[0]['content']}\n\n{first['content']}"}, *rest]


@lru_cache(maxsize=64)
def _has_system_role(
    template: str, tokenizer: PreTrainedTokenizerBase, template_kwargs: str
) -> bool:
    """Whether the template writes a system turn out: some raise, others drop it silently."""
    probe = [{"role": "system", "content": _MARK}, {"role": "user", "content": "x"}]
    values = json.loads(template_kwargs)
    try:
        return _MARK in tokenizer.apply_chat_template(
            probe, chat_template=template, tokenize=False, **values
        )
    except Exception:  # templates raise what they like
        return False


@lru_cache(maxsize=64)
def _turn_end(template: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    except Exception:  # templates raise what they like
        return None
    _, found, tail = str(text).rpartition(_MARK)
    # Not a run of blanks, which many tokenizers add as a token: it ends no turn.
    tail = tail.lstrip()
    ends = [t for t in _control_tokens(tokenizer) if t.strip() and tail.startswith(t)]
    return max(ends, key=len) if found and ends else None


@lru_cache(maxsize=64)
def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    return tuple(added | set(tokenizer.all_special_tokens))


def _split_at(text: str, marks: Sequence[str]) -> list[str]:
    pieces = [text]
    for mark in marks:
        pieces = [
            part
            for piece in pieces
            for i, chunk in enumerate(piece.split(mark))
            for part in ([mark, chunk] if i else [chunk])
        ]
    return [piece for piece in pieces if piece]
