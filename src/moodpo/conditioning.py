"""Conditioning: a preference → the system instruction, and instruction + prompt → token ids.

A preference is a weight per objective and, where a policy is trained with them, lower bounds.
Weights travel as data, never by reading text back: nothing that a prompt says can change which
weights are logged, scored or trained. Knows nothing of models or rewards. The order of objectives
is fixed by the `Conditioner`, which training writes to `moodpo.json`.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moodpo.errors import ConfigError, WeightsError
from moodpo.preferences import BoundRange, round_bound, wrong_count
from moodpo.records import Prompt, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_FORMAT",
    "DIRECTIVES",
    "PHRASES",
    "WEIGHT_FORMATS",
    "Conditioner",
]

# The one format that we measured to steer a small model within minutes: docs/conditioning.md.
DEFAULT_FORMAT = "grouped"
DIRECTIVE_FLOOR = 5  # percent: what weighs less is not asked for at all
GROUP_WIDTH = 20  # percentage points that weights of one group may lie apart
PLAIN_FORMAT = "{system}Human: {prompt}\n\nAssistant:"
"""How a prompt reads for a model without a chat template; `system` ends with a blank line."""

PHRASES: Mapping[str, str] = {
    "helpful": "helpful",
    "harmless": "harmless",
    "humor": "funny",
    "deberta": "high-quality",
    "summary": "complete",
    "faithful": "faithful to the text",
    "positivity": "cheerful and positive",
    "objectivity": "neutral and factual",
    "neutrality": "neutral in tone",
    "brevity": "brief",
    "detail": "detailed",
    "plainness": "plain and simple",
    "richness": "learned in your words",
}
"""How an objective reads in a sentence such as "Be very …"; its own name where absent."""

DIRECTIVES: Mapping[str, str] = {
    "helpful": "Help as much as you can.",
    "harmless": "Avoid anything that could do harm.",
    "humor": "Be funny.",
    "deberta": "Give the best answer you can.",
    "summary": "Cover everything that matters.",
    "faithful": "Say only what the text says.",
    "positivity": "Answer with great joy, love and enthusiasm!",
    "objectivity": "Give only plain facts.",
    "neutrality": "Answer in a neutral, dry tone.",
    "brevity": "Answer in one short sentence.",
    "detail": "Explain in depth, with many details and examples.",
    "plainness": "Write simply, as for a small child, with short words.",
    "richness": "Use a learned, academic style.",
}
"""What asks for an objective by itself, for the `directive` format."""

_GRADES = (
    (0.85, "extremely {phrase}"),
    (0.60, "very {phrase}"),
    (0.40, "fairly {phrase}"),
    (0.15, "slightly {phrase}"),
    (0.00, "not {phrase}"),
)


def _decimal(weights: Sequence[float], names: Sequence[str]) -> str:
    parts = _apportion(weights, 100)
    return ", ".join(f"{n} {p / 100:.2f}" for n, p in zip(names, parts, strict=True))


def _percent(weights: Sequence[float], names: Sequence[str]) -> str:
    return ", ".join(f"{n} {p}%" for n, p in zip(names, _apportion(weights, 100), strict=True))


def _unary(weights: Sequence[float], names: Sequence[str]) -> str:
    shares = _apportion(weights, 10)
    # Spaces keep one token per mark: tokenizers merge runs like "#######" unpredictably.
    bars = [" ".join("#" * abs(p) + "-" * (10 - abs(p))) for p in shares]
    signs = ["minus " if p < 0 else "" for p in shares]
    return ", ".join(f"{n} {s}[{b}]" for n, s, b in zip(names, signs, bars, strict=True))


def _verbal(weights: Sequence[float], names: Sequence[str]) -> str:
    return ", ".join(_grade(weight, name) for weight, name in _ranked(weights, names))


def _directive(weights: Sequence[float], sentences: Sequence[str]) -> str:
    return " ".join(f"{_share(share)}: {text}" for share, text in _asked_for(weights, sentences))


def _grouped(weights: Sequence[float], sentences: Sequence[str]) -> str:
    # Of two sentences a small model follows the first, whatever their percentages: without groups
    # an even balance reads like three quarters of whatever happens to come first.
    groups: list[list[tuple[int, str]]] = []
    for share, text in _asked_for(weights, sentences):
        if groups and abs(groups[-1][0][0]) - abs(share) <= GROUP_WIDTH:
            groups[-1].append((share, text))
        else:
            groups.append([(share, text)])
    return " ".join(map(_group, groups))


def _group(members: Sequence[tuple[int, str]]) -> str:
    shares = ", ".join(_share(share) for share, _ in members)
    heading = shares if len(members) == 1 else f"Balanced ({shares})"
    return f"{heading}: {' '.join(text for _, text in members)}"


def _asked_for(weights: Sequence[float], sentences: Sequence[str]) -> list[tuple[int, str]]:
    ranked = _ranked(_apportion(weights, 100), sentences)
    return [(int(share), text) for share, text in ranked if abs(share) >= DIRECTIVE_FLOOR]


def _share(share: int) -> str:
    return f"{abs(share)}%{' against' if share < 0 else ''}"


def _ranked(values: Sequence[float], names: Sequence[str]) -> list[tuple[float, str]]:
    # The strongest first: instruction-tuned models follow what they read first and most clearly.
    return sorted(zip(values, names, strict=True), key=lambda pair: -abs(pair[0]))


_RENDERERS: dict[str, tuple[str, Callable[[Sequence[float], Sequence[str]], str]]] = {
    "decimal": ("Objective weights: {weights}.", _decimal),
    "percent": ("Objective weights: {weights}.", _percent),
    "unary": ("Objective weights: {weights}.", _unary),
    "verbal": ("Be {weights}.", _verbal),
    "directive": ("{weights}", _directive),
    "grouped": ("{weights}", _grouped),
}
WEIGHT_FORMATS: tuple[str, ...] = tuple(_RENDERERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioner:
    """Writes weights into the system instruction, always the same way.

    Attributes:
        objectives: Names in the order of every weight vector.
        weight_format: `decimal` (0.70), `percent` (70%), `unary` (a bar of ten per objective),
            `verbal` (words graded by weight), `directive` (a sentence per objective behind its
            percentage), `grouped` (the same, objectives of nearly equal weight together), or
            several joined by `+`, as in `verbal+decimal`.
        template: The user's own instruction in place of the default. `{weights}` stands for the
            weights in `weight_format`, `{NAME}` for one objective's two-decimal weight.
        phrases: What `verbal` says for an objective, such as `positivity: cheerful and
            positive`; the objective's name where absent.
        directives: What `directive` and `grouped` say for an objective: a full sentence that
            asks for it; `Be PHRASE.` where absent.
        prompt_template: Frames the user's text for the policy, `{prompt}` standing for it, as in
            `Summarize this post: {prompt}`. Rewards still see the raw prompt.
        lower_bounds: Objectives that a lower bound may be asked of, with the lowest and the
            highest in raw reward. A bound follows the weights: `Keep harmless at least 0.3.`
        signed: Objectives whose weight may be negative; `against` then stands for less.
    """

    objectives: tuple[str, ...]
    weight_format: str = DEFAULT_FORMAT
    template: str | None = None
    phrases: Mapping[str, str] = field(default_factory=dict)
    directives: Mapping[str, str] = field(default_factory=dict)
    prompt_template: str | None = None
    lower_bounds: Mapping[str, BoundRange] = field(default_factory=dict)
    signed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "signed", tuple(self.signed))
        for what, names in (("lower_bounds", self.lower_bounds), ("signed", self.signed)):
            if unknown := [name for name in names if name not in self.objectives]:
                raise ConfigError(
                    f"{what} names {unknown[0]!r}, but the objectives are "
                    f"{', '.join(self.objectives)}. Name one of them."
                )
        for part in self.weight_format.split("+"):
            if part not in _RENDERERS:
                raise ConfigError(
                    f"Unknown weight_format {part!r}. Choose from {', '.join(WEIGHT_FORMATS)}, or "
                    "join several with '+', as in 'verbal+decimal'."
                )
        if self.template is not None:
            _check_template(self.template, self.objectives)
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ConfigError(
                f"The prompt template {self.prompt_template!r} has no {{prompt}}. Say where the "
                "user's text goes."
            )

    @classmethod
    def of(cls, objectives: Sequence[str], **settings: Any) -> Conditioner:
        """A conditioner that says known objectives in our words (`PHRASES`, `DIRECTIVES`).

        Args:
            objectives: K names, in order.
            **settings: Further attributes.
        """
        return cls(
            objectives=tuple(objectives),
            phrases={name: PHRASES[name] for name in objectives if name in PHRASES},
            directives={name: DIRECTIVES[name] for name in objectives if name in DIRECTIVES},
            **settings,
        )

    def instruction(self, weights: Sequence[float], bounds: Sequence[float] | None = None) -> str:
        """The system instruction for one weight vector.

        Args:
            weights: K values on the simplex, in the order of `objectives`; signed ones may be
                negative, `Σ_k |w_k| = 1`.
            bounds: K lower bounds in raw reward, NaN where there is none.

        Returns:
            One line of text.
        """
        text = self._weights_text(weights)
        named = zip(self.objectives, bounds or (), strict=bounds is not None)
        asked = [
            f"{name} at least {round_bound(bound, self.lower_bounds.get(name, (bound, bound))):g}"
            for name, bound in named
            if not math.isnan(bound)
        ]
        return f"{text} Keep {' and '.join(asked)}." if asked else text

    def _weights_text(self, weights: Sequence[float]) -> str:
        weights = [float(w) for w in weights]
        if len(weights) != len(self.objectives):
            raise WeightsError(wrong_count(len(weights), self.objectives))
        rendered = [self._render(part, weights) for part in self.weight_format.split("+")]
        if self.template is None:
            frames = [_RENDERERS[part][0] for part in self.weight_format.split("+")]
            return " ".join(
                frame.format(weights=text) for frame, text in zip(frames, rendered, strict=True)
            )
        shares = [p / 100 for p in _apportion(weights, 100)]
        values = {n: f"{s:.2f}" for n, s in zip(self.objectives, shares, strict=True)}
        return self.template.format(weights="; ".join(rendered), **values)

    def messages(
        self,
        prompt: Prompt,
        weights: Sequence[float] | None,
        bounds: Sequence[float] | None = None,
    ) -> list[dict[str, str]]:
        """The conversation the policy sees.

        Args:
            prompt: The raw prompt; its own system turn, if any, follows the weight instruction.
            weights: K values on the simplex, or None for the unconditioned conversation.
            bounds: K lower bounds, NaN where there is none.

        Returns:
            Messages, the instruction first as a system turn.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        conversation = [dict(turn) for turn in turns]
        if self.prompt_template is not None:
            # replace, not format: braces in the user's text are the user's
            text = self.prompt_template.replace("{prompt}", conversation[-1]["content"])
            conversation[-1]["content"] = text
        if weights is None:
            return conversation
        instruction = self.instruction(weights, bounds)
        if conversation and conversation[0]["role"] == "system":
            own = conversation.pop(0)["content"]
            instruction = f"{instruction}\n\n{own}"
        return [{"role": "system", "content": instruction}, *conversation]

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        weights: Sequence[float] | None,
        bounds: Sequence[float] | None = None,
    ) -> TokenIds:
        """Token ids of the conditioned prompt, up to where the completion starts.

        Text of the prompt can never become control tokens: where it spells one, such as
        `<|im_start|>`, it is tokenized as plain characters (transformers#29279).

        Args:
            tokenizer: The policy's tokenizer.
            prompt: The raw prompt.
            weights: K values on the simplex, or None for the unconditioned prompt.
            bounds: K lower bounds, NaN where there is none.

        Returns:
            Token ids, special tokens included.
        """
        return encode_messages(tokenizer, self.messages(prompt, weights, bounds))

    def longest_bounds(self) -> tuple[float, ...]:
        """Bounds whose text is as long as that of any others, for the lengths of prompts."""
        return tuple(
            max(_between(*self.lower_bounds[name]), key=lambda bound: len(f"{bound:g}"))
            if name in self.lower_bounds
            else math.nan
            for name in self.objectives
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, for `moodpo.json`."""
        described: dict[str, Any] = {
            "objectives": list(self.objectives),
            "weight_format": self.weight_format,
            "template": self.template,
            "phrases": dict(self.phrases),
            "directives": dict(self.directives),
            "prompt_template": self.prompt_template,
        }
        # Only where they are used: what was written without them still reads as the same.
        if self.lower_bounds:
            described["lower_bounds"] = {n: list(r) for n, r in self.lower_bounds.items()}
        if self.signed:
            described["signed"] = list(self.signed)
        return described

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conditioner:
        """The conditioner that `to_dict` described."""
        bounds = values.get("lower_bounds", {})
        ranges = {name: (float(low), float(high)) for name, (low, high) in bounds.items()}
        return cls(**{**values, "lower_bounds": ranges})

    def _render(self, part: str, weights: Sequence[float]) -> str:
        names = self.objectives
        if part == "verbal":
            names = tuple(self.phrases.get(name, name) for name in names)
        if part in ("directive", "grouped"):
            names = tuple(
                self.directives.get(name, f"Be {self.phrases.get(name, name)}.") for name in names
            )
        return _RENDERERS[part][1](weights, names)


def encode_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> TokenIds:
    """Tokenizes a conversation with a generation prompt, safe against injected control tokens.

    Args:
        tokenizer: With a chat template, or without one (then `PLAIN_FORMAT` is used, earlier
            turns written as `Human:` / `Assistant:` too).
        messages: An optional system turn, then user and assistant turns.

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
    pieces = _split_at(_render_conversation(tokenizer, safe), list(stand_ins))
    ids: list[int] = []
    for piece in pieces:
        literal = piece in stand_ins
        text = stand_ins.get(piece, piece)
        ids.extend(
            tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
        )
    if tokenizer.chat_template is None:
        prefix = tokenizer("")["input_ids"]
        # Only a leading BOS: a plain prompt continues, so nothing may end it.
        ids = [t for t in prefix if t == tokenizer.bos_token_id][:1] + ids
    return tuple(ids)


def _apportion(weights: Sequence[float], units: int) -> list[int]:
    """Whole shares whose sizes sum to exactly `units` (largest remainders): text sums to 1."""
    exact = [abs(w) * units for w in weights]
    shares = [math.floor(e + 1e-9) for e in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: max(0, round(sum(exact)) - sum(shares))]:
        shares[i] += 1
    return [-share if w < 0 else share for share, w in zip(shares, weights, strict=True)]


def _grade(weight: float, phrase: str) -> str:
    threshold, words = next(grade for grade in _GRADES if abs(weight) >= grade[0])
    return words.format(phrase=f"far from {phrase}" if weight < 0 < threshold else phrase)


def _between(low: float, high: float) -> list[float]:
    """Bounds of a range, some of which need all the digits that are written."""
    shares = (0.0, 0.123456, 0.654321, 1.0)
    return [round_bound(low + share * (high - low), (low, high)) for share in shares]


def _check_template(template: str, objectives: Sequence[str]) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigError(
            f"The instruction template {template!r} is malformed: {error}. Write literal braces "
            "as {{ and }}."
        ) from None
    unknown = fields - {"weights", *objectives}
    missing = [] if "weights" in fields else [n for n in objectives if n not in fields]
    if unknown or missing:
        problem = f"unknown fields {sorted(unknown)}" if unknown else f"no field for {missing}"
        raise ConfigError(
            f"The instruction template {template!r} has {problem}. Use {{weights}}, or one field "
            f"per objective: {', '.join('{' + n + '}' for n in objectives)}."
        )


def _render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]
) -> str:
    if tokenizer.chat_template is None:
        return _plain_conversation(messages)
    if messages[0]["role"] == "system" and not _has_system_role(tokenizer.chat_template, tokenizer):
        messages = _fold_system(messages)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


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
def _has_system_role(chat_template: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes a system turn out: some raise, others drop it silently."""
    probe = [{"role": "system", "content": "\ue002"}, {"role": "user", "content": "x"}]
    try:
        return "\ue002" in tokenizer.apply_chat_template(probe, tokenize=False)
    except Exception:  # templates raise what they like
        return False


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
