"""Protocols: what an evaluation asks of a policy and of rewards.

Knows nothing of how either works, and needs no torch. A policy need only have `objectives` and
`sample`: `as_policy` gives it what it leaves out. Shapes: n prompts, K objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from moodpo.records import Answer, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from moodpo.generation.base import SamplingConfig

__all__ = ["Panel", "Policy", "as_policy"]


class Policy(Protocol):
    """Answers prompts under weights; `moodpo.SteerablePolicy` is one.

    What has a body here may be left out: by a subclass, or by an object of another class that is
    passed through `as_policy`.
    """

    @property
    def objectives(self) -> Sequence[str]:
        """K names, in the order of its weights."""

    @property
    def sampling(self) -> SamplingConfig | None:
        """How completions are sampled where nobody says otherwise; None where it cannot tell."""
        return None

    def sample(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        *,
        seeds: Sequence[int],
        sampling: SamplingConfig,
    ) -> Sequence[Answer | str]:
        """One answer per prompt under its row of the weights `[n, K]` (float64).

        A row may depend only on its own prompt, weights and seed. Plain texts will do in place of
        answers: then nobody knows which were cut, and lengths are counted.
        """

    def count_tokens(self, texts: Sequence[str]) -> Sequence[int]:
        """Lengths of answers that came as plain texts: words, where there is no tokenizer."""
        return [len(text.split()) for text in texts]

    def kl_to_reference(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        answers: Sequence[Any],
        *,
        sampling: SamplingConfig,
    ) -> Sequence[float] | None:
        """KL per sequence in nats of what `sample` answered, as it answered; None if unknown."""
        return None

    def describe(self) -> Mapping[str, Any]:
        """What identifies it: `name`, `path`, `kind`, `lineage`."""
        return {"name": type(self).__name__, "kind": type(self).__name__, "lineage": {}}


class Panel(Protocol):
    """Scores texts by several rewards (`rewards.RewardPanel`)."""

    @property
    def names(self) -> Sequence[str]:
        """One name per reward."""

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Tensor:
        """Raw rewards `[n, K]`, higher is better, NaN where there is no score."""


_OPTIONAL = ("sampling", "count_tokens", "kl_to_reference", "describe")


def as_policy(policy: Any) -> Policy:
    """A policy with all members: those that it leaves out, or sets to None, are `Policy`'s own.

    Args:
        policy: With at least `objectives` and `sample`. One that lacks nothing is returned.
    """
    own = {name: getattr(policy, name, None) for name in (*_OPTIONAL, "objectives", "sample")}
    if None not in own.values():
        return policy  # type: ignore[no-any-return]
    present = {
        # Static: a method is bound already, and a function is not to be.
        name: staticmethod(value) if callable(value) else value
        for name, value in own.items()
        if value is not None
    }
    completed: type[Policy] = type(type(policy).__name__, (Policy,), present)
    return completed()
