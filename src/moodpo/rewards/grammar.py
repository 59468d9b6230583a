"""Grammar: the text of a reward's spec, taken apart.

    [name=]target[@revision][#option=value[&option=value]]

Asks the file system whether a folder exists, for one that does may hold any of these signs. Knows
no kind of reward, and not what a target or an option means.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from moodpo.errors import RewardSpecError
from moodpo.files import looks_local

__all__ = [
    "NamedReward",
    "RewardSpec",
    "check_objective_names",
    "objective_name",
    "one_of",
    "refuse_options",
    "split_body",
    "split_name",
    "split_revision",
    "to_path",
]

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.+)", re.DOTALL)
_OPTIONS = re.compile(r"(.+)#([^#]*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One parsed spec. A kind that makes more of it answers a subclass.

    Attributes:
        text: As given, for messages.
        name: Of the objective.
        kind: Name of the `Kind` that reads it.
        target: What the kind finds the reward by.
        revision: What follows @, None without it.
        options: What follows #, as written.
    """

    text: str
    name: str
    kind: str
    target: str
    revision: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def rebuildable(self) -> str:
        """The target with its options, without name and revision: what `describe` records."""
        tail = "&".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.target}#{tail}" if tail else self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedReward:
    """One line of the table of rewards that go by name."""

    name: str
    kind: str
    spec: str  # Hub id (with its revision where one is pinned); the name of what is built in
    input: str
    license: str
    summary: str


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


def objective_name(target: str) -> str:
    """The default name: a preset's or function's own, or the last part of a path or id."""
    last = re.split(r"[/\\:]", target.rstrip("/\\"))[-1]
    name = re.sub(r"[^\w-]", "_", last)
    return name if _NAME.fullmatch(name) else f"reward_{name}".rstrip("_")


def split_name(text: str) -> tuple[str | None, str]:
    """A spec → the objective's name, None where it gives none, and the rest."""
    named = None if to_path(split_body(text)[0]).is_dir() else _NAMED.fullmatch(text)
    return (named[1], named[2]) if named else (None, text)


def split_body(body: str) -> tuple[str, dict[str, str]]:
    """A spec without its name → what is before #, and the options.

    Raises:
        RewardSpecError: If an option is not of the form, or given twice.
    """
    optioned = None if to_path(body).is_dir() else _OPTIONS.fullmatch(body)
    return (optioned[1], _split_options(body, optioned[2])) if optioned else (body, {})


def split_revision(located: str) -> tuple[str, str | None]:
    """What is before # → the target, and what follows @; None where it gives no revision."""
    if "@" not in located or to_path(located).exists():
        return located, None
    target, _, revision = located.rpartition("@")
    if looks_local(target) and not to_path(target).exists():
        return located, None  # a folder that does not exist, or an address, with an @ in it
    return target, revision


def to_path(target: str) -> Path:
    """The path that a target would be, `~` read where there is such a home."""
    try:
        return Path(target).expanduser()
    except (RuntimeError, ValueError):  # "~nobody" has no home, and "~\0" no name
        return Path(target)


def refuse_options(spec: RewardSpec) -> None:
    """Refuses whatever follows the target, where a kind reads nothing but that.

    Raises:
        RewardSpecError: If there are options, or a revision.
    """
    if spec.options or spec.revision:
        raise RewardSpecError(
            f"{spec.text!r}: options and revisions are for models, {spec.target!r} is a "
            f"{spec.kind} reward. Write just {spec.target!r}."
        )


def one_of(text: str, what: str, value: str, known: Iterable[str]) -> str:
    """The value, if it is a known one.

    Raises:
        RewardSpecError: Naming the spec's `text`, `what` the value is of, and the known ones.
    """
    if value not in (choices := list(known)):
        raise RewardSpecError(
            f"{text!r}: {what} cannot be {value!r}. Use one of {', '.join(choices)}."
        )
    return value


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
