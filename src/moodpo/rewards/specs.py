"""Specs: what `--reward_models` may say, and how it is read.

    [name=]target[@revision][#option=value[&option=value]]

- `name` is the objective's name in weights, metrics and reports.
- `target` is a preset (`helpful`), a lexical scorer (`brevity`), a Python function
  (`package.module:function`), a folder (`./rm`), or a Hub id (`owner/model`). Names win over
  folders: say `./helpful` for a folder. A Hub id that is exactly a preset's checkpoint is read in
  that preset's format.
- `@revision` pins a branch, tag or commit of a Hub id or preset.
- options of model rewards: `label=1` (index or name), `score=logit|margin`,
  `response=whole|first-sentence`, `input=` a key of `presets.INPUTS`, `like=` a preset whose
  format the checkpoint shares (a local copy, say), `max_tokens=512`.

Examples: `helpful`, `safe=harmless@4f3c2d1`, `tone=org/sentiment#label=positive`,
`faithful#score=margin&response=first-sentence`, `helpful=/models/helpful-rm#like=helpful`.

Imports neither torch nor transformers. Refuses to know what is inside a folder or on the Hub.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from moodpo.errors import RewardSpecError
from moodpo.files import looks_local
from moodpo.rewards.function import FUNCTION_SPEC
from moodpo.rewards.lexical import LEXICAL
from moodpo.rewards.presets import (
    DEFAULT_MAX_TOKENS,
    INPUTS,
    PRESETS,
    Pooling,
    Preset,
    preset_of_checkpoint,
)

__all__ = [
    "PresetRow",
    "ResponsePart",
    "RewardSpec",
    "ScoreKind",
    "Scoring",
    "check_objective_names",
    "list_presets",
    "object_spec",
    "objective_name",
    "parse_spec",
    "rebuild_specs",
    "replace_name",
]

ScoreKind: TypeAlias = Literal["logit", "margin"]
"""The label's logit, or the logit minus the log-sum-exp of the others (log-odds)."""

ResponsePart: TypeAlias = Literal["whole", "first-sentence"]
"""The whole response, or up to its first period as in Rewarded Soups."""

SpecKind: TypeAlias = Literal["preset", "lexical", "function", "model"]

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.+)", re.DOTALL)
_OPTIONS = re.compile(r"(.+)#([^#]*)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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
class RewardSpec:
    """One parsed spec.

    Attributes:
        text: As given, without the objective's name.
        name: Of the objective.
        kind: preset, lexical, function or model.
        target: Scorer's name, `module:function`, absolute folder, or Hub id.
        revision: Branch, tag or commit on the Hub.
        scoring: For presets and models.
    """

    text: str
    name: str
    kind: SpecKind
    target: str
    revision: str | None = None
    scoring: Scoring | None = None

    @property
    def checkpoint(self) -> str:
        """Folder or Hub id of a preset or model."""
        return PRESETS[self.target].checkpoint if self.kind == "preset" else self.target

    @property
    def pinned(self) -> str | None:
        """The revision to load: the spec's, else the preset's, else whatever the Hub serves."""
        preset = PRESETS.get(self.target) if self.kind == "preset" else None
        return self.revision or (preset.revision if preset else None)

    @property
    def rebuildable(self) -> str:
        """The target with its options, without name and revision: what `describe` records."""
        _, options = _split_body(self.text)
        tail = "&".join(f"{key}={value}" for key, value in options.items())
        return f"{self.target}#{tail}" if tail else self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetRow:
    """One line of the table of rewards that go by name."""

    name: str
    kind: Literal["preset", "lexical"]
    spec: str  # Hub id (with its revision where one is pinned), or the scorer's name
    input: str
    license: str
    summary: str


def list_presets() -> list[PresetRow]:
    """Every reward that goes by name: the presets, then the lexical scorers."""
    models = [
        PresetRow(
            name=p.name,
            kind="preset",
            spec=f"{p.checkpoint}@{p.revision}" if p.revision else p.checkpoint,
            input=str(INPUTS[p.input]),
            license=p.license,
            summary=p.summary,
        )
        for p in PRESETS.values()
    ]
    lexical = [
        PresetRow(
            name=s.name,
            kind="lexical",
            spec=s.name,
            input="words of the completion",
            license="built in",
            summary=f"{s.summary}, in [{s.bounds[0]:g}, {s.bounds[1]:g}]",
        )
        for s in LEXICAL.values()
    ]
    return models + lexical


def check_objective_names(names: Sequence[str]) -> None:
    """Refuses names that repeat, or that weights, templates and metrics could not spell.

    Raises:
        RewardSpecError: Naming the first such name.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise RewardSpecError(
                f"{count} rewards are named {name!r}. Name them apart, as in first_{name}=<spec>."
            )
        if not _NAME.fullmatch(name):
            raise RewardSpecError(
                f"{name!r} cannot name an objective: use letters, digits, - and _, and start "
                "with a letter, as in my_reward=<spec>."
            )


def parse_spec(text: str) -> RewardSpec:
    """Reads one spec; touches no file beyond asking whether a folder exists.

    Args:
        text: As in the module's first lines.

    Raises:
        RewardSpecError: If it is not of that form or names nothing known.
    """
    text = text.strip()
    named = None if _folder(_split_body(text)[0]).is_dir() else _NAMED.fullmatch(text)
    name, body = (named[1], named[2]) if named else (None, text)
    if not body:
        raise RewardSpecError("A reward spec is empty. Name a preset, function, folder or Hub id.")
    located, options = _split_body(body)
    target, revision = _split_revision(located)
    if revision == "":
        raise RewardSpecError(f"{text!r} has an empty revision. Write target@commit, or no @.")
    kind = _kind_of(target)
    if kind in ("lexical", "function") and (options or revision):
        raise RewardSpecError(
            f"{text!r}: options and revisions are for models, {target!r} is a {kind} reward. "
            f"Write just {target!r}."
        )
    if kind == "model" and (folder := _folder(target)).exists():
        target = str(folder.resolve())
        if revision:
            raise RewardSpecError(
                f"{text!r} asks for revision {revision!r} of a local folder, which has none. "
                "Drop the revision, or pass a Hub id."
            )
    return RewardSpec(
        text=body,
        name=name or objective_name(target),
        kind=kind,
        target=target,
        revision=revision,
        scoring=_scoring(body, target, kind, options) if kind in ("preset", "model") else None,
    )


def object_spec(source: str, text: str | None) -> RewardSpec:
    """The spec of a model that was passed as an object.

    Args:
        source: Where it came from, or its class.
        text: `name[#option=value...]`; None names it after its source.

    Raises:
        RewardSpecError: If an option is unknown.
    """
    name, options = _split_body(text) if text else (objective_name(source), {})
    scoring = _scoring(text or source, source, "model", options)
    return RewardSpec(text=source, name=name, kind="model", target=source, scoring=scoring)


def objective_name(target: str) -> str:
    """The default name: a preset's or function's own, or the last part of a path or id."""
    last = re.split(r"[/\\:]", target.rstrip("/\\"))[-1]
    name = re.sub(r"[^\w-]", "_", last)
    return name if _NAME.fullmatch(name) else f"reward_{name}".rstrip("_")


def replace_name(spec: RewardSpec, name: str | None) -> RewardSpec:
    """The spec under another objective name; None keeps its own."""
    return spec if name is None else replace(spec, name=name)


def rebuild_specs(descriptions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Specs that load the described rewards again, at the very revisions that were used.

    Args:
        descriptions: What `RewardPanel.describe` answered, in order.

    Raises:
        RewardSpecError: If a reward was an object of the program that described it.
    """
    specs = []
    for description in descriptions:
        name, spec = description["name"], description.get("spec")
        if not spec:
            raise RewardSpecError(
                f"Reward {name!r} was a Python object ({description.get('kind')}) and cannot be "
                "rebuilt from its description. Pass it again."
            )
        optioned = _OPTIONS.fullmatch(str(spec))
        target, options = (optioned[1], f"#{optioned[2]}") if optioned else (spec, "")
        revision = f"@{description['revision']}" if description.get("revision") else ""
        specs.append(f"{name}={target}{revision}{options}")
    return specs


# --- parts of a spec ------------------------------------------------------------------------


def _split_revision(located: str) -> tuple[str, str | None]:
    if "@" not in located or _folder(located).exists():
        return located, None
    target, _, revision = located.rpartition("@")
    if looks_local(target) and not _folder(target).exists():
        return located, None  # a folder that does not exist, with an @ in its name
    return target, revision


def _kind_of(target: str) -> SpecKind:
    if target in PRESETS:
        return "preset"
    if target in LEXICAL:
        return "lexical"
    if FUNCTION_SPEC.fullmatch(target):
        return "function"
    if _folder(target).exists() or looks_local(target) or _HUB_ID.fullmatch(target):
        return "model"
    known = [*PRESETS, *LEXICAL]
    close = difflib.get_close_matches(target, known, n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise RewardSpecError(
        f"Unknown reward {target!r}.{hint} Known names: {', '.join(known)}. Otherwise pass a "
        "folder, a Hub id (owner/model), or a function (package.module:function)."
    )


def _split_body(body: str) -> tuple[str, dict[str, str]]:
    optioned = None if _folder(body).is_dir() else _OPTIONS.fullmatch(body)
    return (optioned[1], _split_options(body, optioned[2])) if optioned else (body, {})


def _folder(target: str) -> Path:
    try:
        return Path(target).expanduser()
    except (RuntimeError, ValueError):  # "~nobody" has no home, and "~\0" no name
        return Path(target)


def _split_options(body: str, text: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in text.split("&"):
        key, mark, value = part.partition("=")
        if not mark or not value or key in options:
            raise RewardSpecError(
                f"{body!r}: cannot read the option {part!r}. Write #option=value, joined by &, "
                "each option once."
            )
        options[key] = value
    return options


def _scoring(body: str, target: str, kind: SpecKind, options: dict[str, str]) -> Scoring:
    """The preset's defaults, then the options."""
    preset = PRESETS[target] if kind == "preset" else preset_of_checkpoint(target)
    values = dict(options)
    if (like := values.pop("like", None)) is not None:
        preset = PRESETS[_one_of(body, "like", like, PRESETS)]
    scoring = Scoring(input=preset.input if preset else None, preset=preset)
    for key, value in values.items():
        scoring = replace(scoring, **{key: _option(body, key, value)})
    return scoring


def _option(body: str, key: str, value: str) -> Any:
    if key == "label":
        return int(value) if value.isdecimal() else value
    if key == "max_tokens":
        if not value.isdecimal() or int(value) < 1:
            raise RewardSpecError(f"{body!r}: max_tokens is a whole number, got {value!r}.")
        return int(value)
    choices = {"score": get_args(ScoreKind), "response": get_args(ResponsePart), "input": INPUTS}
    known = [*choices, "label", "like", "max_tokens"]
    return _one_of(body, key, value, choices[_one_of(body, "an option", key, known)])


def _one_of(body: str, what: str, value: str, known: Any) -> str:
    if value not in known:
        raise RewardSpecError(
            f"{body!r}: {what} cannot be {value!r}. Use one of {', '.join(known)}."
        )
    return value
