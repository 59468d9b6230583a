"""Inputs: a prompt and a response, written down as one reward model reads them.

A conversation is written whole, in the model's own frame. What does not fit is cut out of the
prompt, for the response is what is judged: of dialogues the oldest text goes first, of documents
(a post to summarize) the end, and only a response that is too long by itself loses its own end.
Text that spells a control token stays text. Knows no models and no scores.

Shapes: N inputs, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress, pairwise
from typing import TYPE_CHECKING, TypeAlias

from moodpo.errors import RewardError
from moodpo.records import dialogue_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from moodpo.records import Message, Prompt
    from moodpo.rewards.presets import InputTemplate

__all__ = ["Inputs", "TokenRow", "control_ids", "encode_inputs", "read_turns", "transcript"]

TokenRow: TypeAlias = Mapping[str, Sequence[int]]
"""One unpadded input: `input_ids`, and `token_type_ids` where the tokenizer has them. T each."""

Turns: TypeAlias = "Sequence[Message]"

_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
_SPEAKERS = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SPEAKS = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """N inputs, and how many of them say less than they should."""

    rows: list[TokenRow]  # N
    cut: int = 0  # inputs that were too long
    cut_responses: int = 0  # of these, inputs whose response was too long by itself


def encode_inputs(
    tokenizer: PreTrainedTokenizerBase,
    template: InputTemplate,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    max_tokens: int,
) -> Inputs:
    """Writes N prompts and responses as the inputs of a reward model.

    Args:
        tokenizer: The reward model's own.
        template: How the two become one text, a pair, or a conversation.
        prompts: N raw prompts.
        responses: N texts, already stripped.
        max_tokens: What longer inputs are cut to.

    Returns:
        N unpadded rows. Encoders keep their special tokens; text never becomes one.

    Raises:
        RewardError: If `max_tokens` has no room for a single token of the response.
    """
    if not responses:
        return Inputs(rows=[])
    writer = _Writer(tokenizer, template)
    dialogues = [read_turns(template, prompt) for prompt in prompts]
    rows = writer.write(dialogues, responses)
    long = [i for i, row in enumerate(rows) if len(row["input_ids"]) > max_tokens]
    cut_responses = 0
    for i in long:
        rows[i], whole = _fit(writer, dialogues[i], responses[i], rows[i], max_tokens)
        cut_responses += not whole
    return Inputs(rows=rows, cut=len(long), cut_responses=cut_responses)


def read_turns(template: InputTemplate, prompt: Prompt) -> Turns:
    """The turns of a prompt, as a template tells them apart.

    Chat templates and transcripts do; for the others a prompt is one text, whatever it holds.
    Where transcripts are written, a text that is one already is read as the conversation it holds.
    """
    if template.transcript and isinstance(prompt, str):
        return _read_transcript(prompt) or [_user(prompt)]
    if isinstance(prompt, str) or not (template.chat or template.transcript):
        return [_user(dialogue_text(prompt))]
    return [dict(turn) for turn in prompt]


def transcript(turns: Turns) -> str:
    r"""Turns as Anthropic HH writes them, from the text of the first to the text of the last.

    That is `first\n\nAssistant: reply\n\nHuman: last`. The form knows no system role: such a turn
    stands before the next one's text, after a blank line.
    """
    roles = [turn["role"] for turn in turns]
    joints = [
        "\n\n" if "system" in (before, role) else _SPEAKERS[role]
        for before, role in pairwise(roles)
    ]
    opening = _SPEAKERS["assistant"] if roles[0] == "assistant" else ""
    contents = [turn["content"] for turn in turns]
    return "".join(chain(*zip([opening, *joints], contents, strict=True)))


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Token ids that text must never become: all special ones but a mere "unknown"."""
    roles = ("bos", "eos", "sep", "cls", "pad", "mask")
    structural = {getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    return frozenset({*tokenizer.all_special_ids} - ({tokenizer.unk_token_id} - structural))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _read_transcript(text: str) -> list[dict[str, str]] | None:
    """The turns of a text that is an HH transcript up to the reply; None for any other text.

    Line breaks and spaces around turns stay as they are, but for those before the reply: the
    template writes these itself.
    """
    body = text.strip()
    framed = text.startswith("\n\nHuman:") or body.endswith("\n\nAssistant:")
    if not body.startswith("Human:") or not framed:
        return None
    _, *parts = _SPEAKS.split(f"\n\n{body}")
    turns = [
        {"role": _ROLES[speaker], "content": said.removeprefix(" ")}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    turns[-1]["content"] = turns[-1]["content"].rstrip()
    return turns


class _Writer:
    """Turns and responses → token rows of any length."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: InputTemplate) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.controls = control_ids(tokenizer)
        # Chat templates cannot be rendered with verbose=False, and we say ourselves what is cut.
        tokenizer.deprecation_warnings[_TOO_LONG] = True

    def write(self, dialogues: Sequence[Turns], responses: Sequence[str]) -> list[TokenRow]:
        """The N inputs, uncut."""
        if self.template.chat:
            return self._through_chat_template(dialogues, responses)
        fields = [
            {"prompt": self._prompt(turns), "response": response}
            for turns, response in zip(dialogues, responses, strict=True)
        ]
        if "{bos}" in self.template.first:
            return self._around_bos(fields)
        return self._framed(fields)

    def starts(self, text: str) -> list[int]:
        """Where the tokens of a text begin; every character where the tokenizer cannot say."""
        if not self.tokenizer.is_fast:
            return list(range(len(text)))
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [start for start, _ in encoded["offset_mapping"]]

    def _prompt(self, turns: Turns) -> str:
        return transcript(turns) if self.template.transcript else turns[0]["content"]

    def _through_chat_template(
        self, dialogues: Sequence[Turns], responses: Sequence[str]
    ) -> list[TokenRow]:
        encoded = self.tokenizer.apply_chat_template(
            [
                [*map(dict, turns), {"role": "assistant", "content": response}]
                for turns, response in zip(dialogues, responses, strict=True)
            ],
            sanitize_control_tokens=True,
            return_dict=True,
        )
        return [{"input_ids": ids} for ids in encoded["input_ids"]]

    def _framed(self, fields: Sequence[Mapping[str, str]]) -> list[TokenRow]:
        """A text or a pair, within the special tokens that the tokenizer puts around it."""
        first, second = self.template.first, self.template.second
        encoded = self.tokenizer(
            [first.format(**f) for f in fields],
            None if second is None else [second.format(**f) for f in fields],
            split_special_tokens=True,
            return_attention_mask=False,
            return_special_tokens_mask=True,
            verbose=False,
        )
        rows = zip(*encoded.values(), strict=True)
        return [self._only_added_controls(dict(zip(encoded, row, strict=True))) for row in rows]

    def _only_added_controls(self, row: dict[str, list[int]]) -> TokenRow:
        """Drops control tokens that came out of the text rather than from the tokenizer's frame.

        `split_special_tokens` is not enough: converted SentencePiece vocabularies hold `[SEP]` as
        an ordinary piece too, so that the plain text matches it.
        """
        added = row.pop("special_tokens_mask")
        kept = [
            frame or token not in self.controls
            for frame, token in zip(added, row["input_ids"], strict=True)
        ]
        return {key: list(compress(values, kept)) for key, values in row.items()}

    def _around_bos(self, fields: Sequence[Mapping[str, str]]) -> list[TokenRow]:
        """Texts joined by the real bos token: `{bos}` of the template alone becomes a control."""
        rows: list[list[int]] = [[] for _ in fields]
        for place, part in enumerate(self.template.first.split("{bos}")):
            texts = [part.format(**f) for f in fields]
            encoded = self.tokenizer(
                texts, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            for row, ids in zip(rows, encoded["input_ids"], strict=True):
                row.extend([self.tokenizer.bos_token_id] * (place > 0))
                row.extend(token for token in ids if token not in self.controls)
        return [{"input_ids": row} for row in rows]


def _fit(
    writer: _Writer, turns: Turns, response: str, row: TokenRow, max_tokens: int
) -> tuple[TokenRow, bool]:
    """The input of a prompt that is cut until all fits, and whether the response is whole.

    Texts are cut and written anew, rather than the tokens of the row: so that nothing of the
    frame is lost, neither turns nor a template's tail.
    """
    template = writer.template
    slack = max_tokens // 64

    def write(turns: Turns, response: str) -> TokenRow:
        return writer.write([turns], [response])[0]

    def excess(turns: Turns, response: str) -> int:
        return len(write(turns, response)["input_ids"]) - max_tokens

    over = len(row["input_ids"]) - max_tokens
    if template.reads_prompt:
        starts = [writer.starts(turn["content"]) for turn in turns]
        shorten = _without_oldest if template.keeps == "end" else _without_end
        size = sum(map(len, starts))
        cut, over = _least_cut(
            lambda n: excess(shorten(turns, starts, n), response), size, over, slack=slack
        )
        turns = shorten(turns, starts, cut)
    if over <= 0:
        return write(turns, response), True
    begins = writer.starts(response)

    def beginning(cut: int) -> str:
        return response[: max(1, begins[len(begins) - cut])] if cut else response

    most = max(0, len(begins) - 1)  # what is judged is never cut to nothing
    cut, over = _least_cut(lambda n: excess(turns, beginning(n)), most, over, slack=slack)
    if over > 0:
        raise RewardError(
            f"A reward's input is cut to {max_tokens} tokens, of which {template.name!r} leaves "
            f"none for the response: {over} more are needed. Raise #max_tokens=."
        )
    return write(turns, beginning(cut)), False


def _least_cut(
    excess: Callable[[int], int], size: int, over: int, *, slack: int
) -> tuple[int, int]:
    """How many of `size` tokens to take away, and what is still too much after that.

    Args:
        excess: Tokens taken away -> tokens by which the input is too long.
        size: Tokens that there are.
        over: The excess before anything is taken away.
        slack: So many tokens of room need not be used.
    """
    few, cut, step = 0, 0, over
    while over > 0 and cut < size:
        few, cut = cut, min(size, cut + step)
        left = excess(cut)
        # Cut texts tokenize a little otherwise, and a template may ignore what was cut.
        over, step = left, left if left < over else 2 * step
    while over < -slack and cut - few > 1:  # turns that are gone took their frames along
        middle = (few + cut) // 2
        left = excess(middle)
        few, cut, over = (middle, cut, over) if left > 0 else (few, middle, left)
    return cut, over


def _without_oldest(turns: Turns, starts: Sequence[Sequence[int]], cut: int) -> Turns:
    """Turns less their first `cut` tokens.

    Turns that are empty then go, but for a user's before the reply to it, and the last one: what
    is left begins as a conversation does.
    """
    kept = []
    for turn, begins in zip(turns, starts, strict=True):
        taken = min(cut, len(begins))
        cut -= taken
        at = begins[taken] if taken < len(begins) else len(turn["content"])
        kept.append({**turn, "content": turn["content"][at:]})
    first = next((i for i, turn in enumerate(kept) if turn["content"]), len(kept) - 1)
    asked = first and (kept[first]["role"], kept[first - 1]["role"]) == ("assistant", "user")
    return kept[first - 1 if asked else first :]


def _without_end(turns: Turns, starts: Sequence[Sequence[int]], cut: int) -> Turns:
    """A single turn less its last `cut` tokens."""
    (turn,), (begins,) = turns, starts
    at = begins[len(begins) - cut] if cut else len(turn["content"])
    return [{**turn, "content": turn["content"][:at]}]
