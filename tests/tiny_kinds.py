"""A kind of reward that moodpo does not have, as somebody would add it: in one file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moodpo.errors import RewardSpecError
from moodpo.rewards.grammar import NamedReward, RewardSpec, one_of
from moodpo.rewards.kinds import Shared

__all__ = ["CountKind", "CountReward", "CountSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountSpec(RewardSpec):
    case: str


class CountReward:
    def __init__(self, spec: CountSpec, calls: list[str]) -> None:
        self.name, self.spec, self.calls = spec.name, spec, calls

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Tensor:
        self.calls.append(self.name)
        letter = self.spec.target.removeprefix("count:")
        texts = [text.lower() if self.spec.case == "any" else text for text in completions]
        return torch.tensor([float(text.count(letter)) for text in texts])

    def describe(self) -> dict[str, Any]:
        spec = self.spec.rebuildable
        return {"name": self.name, "kind": "count", "spec": spec, "revision": self.spec.revision}


class CountKind:
    name = "count"
    form = "a letter (count:letter)"

    def listed(self) -> list[NamedReward]:
        facts = {"input": "letters", "license": "none", "summary": "many vowels"}
        return [NamedReward(name="es", kind=self.name, spec="count:e", **facts)]

    def matches(self, target: str) -> bool:
        return target == "es" or target.startswith("count:")

    def read(self, spec: RewardSpec) -> CountSpec:
        for key in spec.options:
            one_of(spec.text, "an option", key, ["case"])
        case = one_of(spec.text, "case", spec.options.get("case", "same"), ["same", "any"])
        return CountSpec(
            text=spec.text,
            name=spec.name or f"count_{spec.target[-1]}",
            kind=self.name,
            target="count:e" if spec.target == "es" else spec.target,
            revision=spec.revision,
            options=spec.options,
            case=case,
        )

    def check(self, spec: CountSpec, columns: Iterable[str] | None = None) -> None:
        if len(spec.target) != len("count:e"):
            raise RewardSpecError(f"{spec.text!r} counts one letter. Write count:e.")
        if columns is not None and "banned" in columns:
            raise RewardSpecError("a banned column")

    def build(self, spec: CountSpec, shared: Shared) -> CountReward:
        return CountReward(spec, shared.kept.setdefault("calls", []))
