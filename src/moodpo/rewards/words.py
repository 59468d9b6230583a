"""Words: how objectives that go by name read in a weight instruction. Loads no model.

A conditioner knows no rewards, so whoever makes one hands the words in:
`Conditioner(objectives=names, **words_of(names))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from moodpo.rewards.lexical import LEXICAL
from moodpo.rewards.presets import PRESETS

__all__ = ["Words", "words_of"]


class Words(TypedDict):
    """Two attributes of a conditioner: what it says for an objective, by the objective's name."""

    phrases: dict[str, str]
    directives: dict[str, str]


def words_of(objectives: Sequence[str]) -> Words:
    """The `phrases` and `directives` of the objectives that are a preset's or a lexical scorer's.

    Args:
        objectives: K names; one that we have no words for is left out.
    """
    known = ((name, PRESETS.get(name) or LEXICAL.get(name)) for name in objectives)
    named = {name: found for name, found in known if found is not None}
    return {
        "phrases": {name: found.phrase for name, found in named.items()},
        "directives": {name: found.directive for name, found in named.items()},
    }
