"""Scoring: how a classifier's input is written and its logits become one score, as a spec says.

Options: `label=1` (index or name), `score=logit|margin`, `response=whole|first-sentence`, `input=`
a key of `presets.INPUTS`, `like=` a preset whose format the checkpoint shares (a local copy, say),
`max_tokens=512`. Imports no torch and loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

from moodpo.errors import RewardSpecError
from moodpo.rewards.grammar import RewardSpec, one_of
from moodpo.rewards.presets import DEFAULT_MAX_TOKENS, INPUTS, PRESETS, Pooling, Preset

__all__ = ["ClassifierSpec", "ResponsePart", "ScoreKind", "Scoring", "read_scoring"]

ScoreKind: TypeAlias = Literal["logit", "margin"]
"""The label's logit, or the logit minus the log-sum-exp of the others (log-odds)."""

ResponsePart: TypeAlias = Literal["whole", "first-sentence"]
"""The whole response, or up to its first period as in Rewarded Soups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How a checkpoint's logits become one score.

    Attributes:
        input: Key of `INPUTS`; None lets the checkpoint decide (its chat template, else the pair).
        label: Index or name of the scored label; None lets the checkpoint decide.
        score: See `ScoreKind`.
        response: See `ResponsePart`.
        max_tokens: Upper limit of the input, beside the checkpoint's own.
        preset: Whose promises about the checkpoint are checked at load.
    """

    input: str | None = None
    label: int | str | None = None
    score: ScoreKind = "logit"
    response: ResponsePart = "whole"
    max_tokens: int = DEFAULT_MAX_TOKENS
    preset: Preset | None = None

    @property
    def pooling(self) -> Pooling | None:
        """Where the preset reads the score; None lets the checkpoint's architecture decide."""
        return self.preset.pooling if self.preset else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierSpec(RewardSpec):
    """The spec of a preset or model.

    Attributes:
        checkpoint: Absolute folder or Hub id.
        pinned: The revision to load: the spec's, else the preset's, else whatever the Hub serves.
        scoring: The preset's, then the options.
    """

    checkpoint: str
    pinned: str | None = None
    scoring: Scoring


def read_scoring(text: str, options: Mapping[str, str], preset: Preset | None) -> Scoring:
    """The preset's defaults, then the options.

    Args:
        text: Of the spec, for messages.
        options: As written.
        preset: Whose format it is, unless `like=` names another.

    Raises:
        RewardSpecError: Naming the option that is unknown, or cannot have its value.
    """
    values = dict(options)
    if (like := values.pop("like", None)) is not None:
        preset = PRESETS[one_of(text, "like", like, PRESETS)]
    scoring = Scoring(input=preset.input if preset else None, preset=preset)
    for key, value in values.items():
        scoring = replace(scoring, **{key: _option(text, key, value)})
    return scoring


def _option(text: str, key: str, value: str) -> Any:
    if key == "label":
        return int(value) if value.isdecimal() else value
    if key == "max_tokens":
        if not value.isdecimal() or int(value) < 1:
            raise RewardSpecError(f"{text!r}: max_tokens is a whole number, got {value!r}.")
        return int(value)
    choices = {"score": get_args(ScoreKind), "response": get_args(ResponsePart), "input": INPUTS}
    known = [*choices, "label", "like", "max_tokens"]
    return one_of(text, key, value, choices[one_of(text, "an option", key, known)])
