"""Kinds: what a reward may be. One that is new is a file of its own, and its line in `KINDS`.

Everything else asks here: `specs` which kind reads a text, `load` how it becomes a reward, and
`moodpo rewards` what goes by name. Imports neither torch nor transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from moodpo.errors import RewardSpecError
from moodpo.rewards.classifiers import ModelKind, PresetKind
from moodpo.rewards.function import FunctionKind
from moodpo.rewards.grammar import NamedReward, RewardSpec
from moodpo.rewards.lexical import LexicalKind

if TYPE_CHECKING:
    import torch

    from moodpo.rewards.base import Reward

__all__ = ["KINDS", "Kind", "Shared", "kind_of", "kind_of_target", "list_forms", "list_presets"]

Spec = TypeVar("Spec", bound=RewardSpec)
"""What a kind makes of a spec: `RewardSpec`, or a subclass that holds its options, read."""


@dataclass(slots=True, kw_only=True)
class Shared:
    """What the rewards of one call to `load_rewards` share.

    Attributes:
        device: For models loaded here.
        dtype: Likewise.
        batch_size: Texts per forward pass.
        kept: What a kind keeps from one reward to the next, under a key of its own.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int
    kept: dict[str, Any] = field(default_factory=dict)


class Kind(Protocol[Spec]):
    """One way of naming and making a reward.

    Its rewards are recorded in `moodpo.json` by their own `describe()` and loaded again from that:
    `spec` there is text that `matches` and `read` understand, without name and revision
    (`RewardSpec.rebuildable`, or None for what no text can name), and `revision` is what to pin.
    """

    @property
    def name(self) -> str:
        """As `RewardSpec.kind` and descriptions say it."""

    @property
    def form(self) -> str | None:
        """What to write where nothing goes by name, for people; None where all does."""

    def listed(self) -> list[NamedReward]:
        """The rewards that go by name."""

    def matches(self, target: str) -> bool:
        """Whether a target is of this kind; the first of `KINDS` that says so reads it."""

    def read(self, spec: RewardSpec) -> Spec:
        """Makes of the parts what it will load; the objective is still "" where none was named.

        Raises:
            RewardSpecError: For options or a revision that the kind does not know.
        """

    def check(self, spec: Spec, columns: Iterable[str] | None = None) -> None:
        """Refuses all that can be refused before anything is loaded, without torch.

        Args:
            spec: What `read` answered.
            columns: Names of what `score` will be given beside texts, where they are known.

        Raises:
            RewardSpecError: With the remedy.
        """

    def build(self, spec: Spec, shared: Shared) -> Reward:
        """The reward; here torch and models are loaded.

        Raises:
            RewardSpecError: With the remedy.
        """


KINDS: tuple[Kind[Any], ...] = (PresetKind(), LexicalKind(), FunctionKind(), ModelKind())
"""In the order in which they are asked: names win over functions, and functions over folders."""


def kind_of_target(target: str) -> Kind[Any]:
    """The kind that reads a target.

    Raises:
        RewardSpecError: If none does, with the names that are close.
    """
    for kind in KINDS:
        if kind.matches(target):
            return kind
    known = [row.name for row in list_presets()]
    close = difflib.get_close_matches(target, known, n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise RewardSpecError(
        f"Unknown reward {target!r}.{hint} Known names: {', '.join(known)}. Otherwise pass "
        f"{list_forms()}."
    )


def kind_of(spec: RewardSpec) -> Kind[Any]:
    """The kind that read a spec."""
    return next(kind for kind in KINDS if kind.name == spec.kind)


def list_presets() -> list[NamedReward]:
    """Every reward that goes by name, in the order of the kinds."""
    return [row for kind in KINDS for row in kind.listed()]


def list_forms() -> str:
    """What else may be written, for people: "a folder, a Hub id (owner/model), or a function"."""
    *others, last = [kind.form for kind in reversed(KINDS) if kind.form]
    return ", ".join([*others, f"or {last}"])
