"""Instruction: what the system instruction says of weights, and the conversation it stands in.

Weights travel as data, never by reading text back: nothing that a prompt says can change which
weights are logged, scored or trained. Knows nothing of models or rewards. The order of objectives
is fixed by the `Conditioner`, which training writes to `moodpo.json`.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moodpo.conditioning.tokens import encode_conversation
from moodpo.conditioning.weights import (
    MILLION,
    Millionths,
    apportion,
    to_millionths,
    wrong_count,
)
from moodpo.errors import ConfigError, WeightsError
from moodpo.models.chat_templates import read_template_kwargs
from moodpo.records import Prompt, TokenIds
from moodpo.removed import REMOVED, refuse_removed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_FORMAT",
    "WEIGHT_FORMATS",
    "Conditioner",
]

# The one format that we measured to steer a small model within minutes: docs/conditioning.md.
DEFAULT_FORMAT = "grouped"
# Percent: what has less, of what it and the strongest weigh together, is not asked for at all.
SENTENCE_FLOOR, VERBAL_FLOOR = 5, 15
GROUP_WIDTH = 20  # percentage points that weights of one group may lie apart

_GRADES = (  # from so many percent on
    (85, "extremely"),
    (60, "very"),
    (40, "fairly"),
    (0, "slightly"),
)


def _decimal(weights: Millionths, names: Sequence[str]) -> str:
    return ", ".join(f"{n} {text}" for n, text in zip(names, _decimals(weights), strict=True))


def _percent(weights: Millionths, names: Sequence[str]) -> str:
    return ", ".join(f"{n} {p}%" for n, p in zip(names, apportion(weights, 100), strict=True))


def _unary(weights: Millionths, names: Sequence[str]) -> str:
    shares = apportion(weights, 10)
    # Spaces keep one token per mark: tokenizers merge runs like "#######" unpredictably.
    bars = [" ".join("#" * p + "-" * (10 - p)) for p in shares]
    return ", ".join(f"{n} [{bar}]" for n, bar in zip(names, bars, strict=True))


def _verbal(weights: Millionths, phrases: Sequence[str]) -> str:
    asked = _asked_for(weights, phrases, floor=VERBAL_FLOOR)
    return ", ".join(_grade(weight, phrase) for weight, phrase in asked)


def _grouped(weights: Millionths, sentences: Sequence[str]) -> str:
    # Of two sentences a small model follows the first, whatever their percentages: without groups
    # an even balance reads like three quarters of whatever happens to come first.
    groups: list[list[tuple[int, str]]] = []
    for share, text in _asked_for(apportion(weights, 100), sentences, floor=SENTENCE_FLOOR):
        if groups and groups[-1][0][0] - share <= GROUP_WIDTH:
            groups[-1].append((share, text))
        else:
            groups.append([(share, text)])
    return " ".join(map(_group, groups))


def _group(members: Sequence[tuple[int, str]]) -> str:
    shares = ", ".join(_share(share) for share, _ in members)
    heading = shares if len(members) == 1 else f"Balanced ({shares})"
    return f"{heading}: {' '.join(text for _, text in members)}"


def _asked_for(
    weights: Sequence[int], texts: Sequence[str], *, floor: int
) -> list[tuple[int, str]]:
    """Weights or shares with what asks for them, the strongest first, equals as they stand.

    The floor is relative to the strongest: of many objectives that matter alike, all are said.
    """
    # The strongest first: instruction-tuned models follow what they read first and most clearly.
    ranked = sorted(zip(weights, texts, strict=True), key=lambda pair: -pair[0])
    strongest = ranked[0][0]
    return [(w, text) for w, text in ranked if 100 * w >= floor * (w + strongest)]


def _share(share: int) -> str:
    # Of more than 200 equal objectives each has less than half a percent.
    return f"{share or '<1'}%"


_RENDERERS: dict[str, tuple[str, Callable[[Millionths, Sequence[str]], str]]] = {
    "decimal": ("Objective weights: {weights}.", _decimal),
    "percent": ("Objective weights: {weights}.", _percent),
    "unary": ("Objective weights: {weights}.", _unary),
    "verbal": ("Be {weights}.", _verbal),
    "grouped": ("{weights}", _grouped),
}
WEIGHT_FORMATS: tuple[str, ...] = tuple(_RENDERERS)
_SENTENCES = ("verbal", "grouped")  # formats that speak of objectives in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioner:
    """Writes weights into the system instruction, always the same way.

    Attributes:
        objectives: Names in the order of every weight vector.
        weight_format: `decimal` (0.70), `percent` (70%), `unary` (a bar of ten per objective),
            `verbal` (words graded by weight), or `grouped` (a sentence per objective behind its
            percentage, objectives of nearly equal weight together).
        template: The user's own instruction in place of the default. `{weights}` stands for the
            weights in `weight_format`, `{NAME}` for one objective's two-decimal weight.
        phrases: What `verbal` says for an objective, such as `positivity: cheerful and
            positive`; the objective's name where absent.
        directives: What `grouped` says for an objective: a full sentence that asks for it;
            `Be PHRASE.` where absent.
        prompt_template: Frames the user's text for the policy, `{prompt}` standing for it, as in
            `Summarize this post: {prompt}`. Rewards still see the raw prompt.
        chat_template_kwargs: Values for variables of the policy's chat template, such as
            `{"enable_thinking": False}`.
    """

    objectives: tuple[str, ...]
    weight_format: str = DEFAULT_FORMAT
    template: str | None = None
    phrases: Mapping[str, str] = field(default_factory=dict)
    directives: Mapping[str, str] = field(default_factory=dict)
    prompt_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        template_kwargs = read_template_kwargs(self.chat_template_kwargs)
        object.__setattr__(self, "chat_template_kwargs", template_kwargs)
        _check_format(self.weight_format)
        if self.template is not None:
            _check_template(self.template, self.objectives)
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise ConfigError(
                f"The prompt template {self.prompt_template!r} has no {{prompt}}. Say where the "
                "user's text goes."
            )

    def instruction(self, weights: Sequence[float]) -> str:
        """The system instruction for one weight vector.

        Args:
            weights: K values on the simplex, in the order of `objectives`.

        Returns:
            One line of text.
        """
        if len(weights) != len(self.objectives):
            raise WeightsError(wrong_count(len(weights), self.objectives))
        exact = to_millionths(weights)
        rendered = self._render(exact)
        if self.template is not None:
            named = dict(zip(self.objectives, _decimals(exact), strict=True))
            return _fill(self.template, {**named, "weights": rendered})
        frame, _ = _RENDERERS[self.weight_format]
        return frame.format(weights=rendered)

    def messages(self, prompt: Prompt, weights: Sequence[float] | None) -> list[dict[str, str]]:
        """The conversation the policy sees.

        Args:
            prompt: The raw prompt; its own system turn, if any, follows the weight instruction.
            weights: K values on the simplex, or None for the unconditioned conversation.

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
        instruction = self.instruction(weights)
        if conversation and conversation[0]["role"] == "system":
            own = conversation.pop(0)["content"]
            instruction = f"{instruction}\n\n{own}"
        return [{"role": "system", "content": instruction}, *conversation]

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        weights: Sequence[float] | None,
    ) -> TokenIds:
        """Token ids of the conditioned prompt, up to where the completion starts.

        Text of the prompt can never become control tokens: where it spells one, such as
        `<|im_start|>`, it is tokenized as plain characters (transformers#29279).

        Args:
            tokenizer: The policy's tokenizer.
            prompt: The raw prompt.
            weights: K values on the simplex, or None for the unconditioned prompt.

        Returns:
            Token ids, special tokens included.

        Raises:
            DataError: If the chat template refuses the conversation.
        """
        messages = self.messages(prompt, weights)
        return encode_conversation(tokenizer, messages, self.chat_template_kwargs)

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
        if self.chat_template_kwargs:
            described["chat_template_kwargs"] = dict(self.chat_template_kwargs)
        return described

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conditioner:
        """The conditioner that `to_dict` described.

        Raises:
            ConfigError: If it says what this version no longer has.
        """
        values = dict(values)
        if (written := values.get("weight_format", DEFAULT_FORMAT)) not in WEIGHT_FORMATS:
            raise ConfigError(
                f"This policy was trained with weight_format {written!r}, which this version does "
                f"not write. Ask it with the moodpo release that trained it, or train one with "
                f"{DEFAULT_FORMAT!r}."
            )
        for key, setting in (("signed", "signed_objectives"), ("lower_bounds", "lower_bounds")):
            if names := values.pop(key, None):
                raise ConfigError(
                    f"This policy was trained with {setting} of {', '.join(names)}. "
                    f"{REMOVED[setting]} To ask it, use the moodpo release that trained it."
                )
        return cls(**values)

    def _render(self, weights: Millionths) -> str:
        _, render = _RENDERERS[self.weight_format]
        if self.weight_format not in _SENTENCES:
            return render(weights, self.objectives)
        # By name, so that equals stand in one order however the objectives do.
        names, values = zip(*sorted(zip(self.objectives, weights, strict=True)), strict=True)
        texts = [self.phrases.get(name, name) for name in names]
        if self.weight_format == "grouped":
            texts = [self.directives.get(n, f"Be {t}.") for n, t in zip(names, texts, strict=True)]
        return render(values, texts)


def _decimals(weights: Millionths) -> list[str]:
    return [f"{share / 100:.2f}" for share in apportion(weights, 100)]


def _grade(weight: int, phrase: str) -> str:
    adverb = next(adverb for percent, adverb in _GRADES if 100 * weight >= percent * MILLION)
    return f"{adverb} {phrase}"


def _check_format(weight_format: str) -> None:
    if weight_format in _RENDERERS:
        return
    refuse_removed([f"weight_format={weight_format}"])
    if "+" in weight_format:
        raise ConfigError(
            f"weight_format {weight_format!r} joins several, which is no more: it steered less "
            "than sentences alone. Use 'grouped'."
        )
    raise ConfigError(
        f"Unknown weight_format {weight_format!r}. Choose from {', '.join(WEIGHT_FORMATS)}."
    )


def _check_template(template: str, objectives: Sequence[str]) -> None:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"The instruction template {template!r} is malformed: {error}. Write literal braces "
            "as {{ and }}."
        ) from None
    if "weights" in objectives:
        raise ConfigError(
            "An objective is named 'weights', which in an instruction template stands for all "
            "weights. Rename the objective, or leave the template out."
        )
    for _, name, form, conversion in parts:
        if form or conversion:
            raise ConfigError(
                f"The instruction template {template!r} formats {name!r}; weights are always "
                f"written alike. Write {{{name}}} alone."
            )
    fields = {name for _, name, _, _ in parts if name is not None}
    unknown = fields - {"weights", *objectives}
    missing = [] if "weights" in fields else [n for n in objectives if n not in fields]
    if unknown or missing:
        problem = f"unknown fields {sorted(unknown)}" if unknown else f"no field for {missing}"
        raise ConfigError(
            f"The instruction template {template!r} has {problem}. Use {{weights}}, or one field "
            f"per objective: {', '.join('{' + n + '}' for n in objectives)}."
        )


def _fill(template: str, values: Mapping[str, str]) -> str:
    """A checked template's text; `str.format` would read the dot in an objective's name."""
    parts = string.Formatter().parse(template)
    return "".join(text + ("" if name is None else values[name]) for text, name, _, _ in parts)
