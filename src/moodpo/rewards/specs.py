"""Specs: what `--reward_models` may say, how it is read, and what is refused before any loading.

    [name=]target[@revision][#option=value[&option=value]]

- `name` is the objective's name in weights, metrics and reports.
- `target` is a preset (`helpful`), a lexical scorer (`brevity`), a Python function
  (`package.module:function`), a folder (`./rm`), or a Hub id (`owner/model`); see `kinds.KINDS`.
  Names win over folders: say `./helpful` for a folder. A Hub id that is exactly a preset's
  checkpoint is read in that preset's format.
- `@revision` pins a branch, tag or commit of a Hub id or preset.
- options are a kind's own; those of models are in `scoring`.

Examples: `helpful`, `safe=harmless@4f3c2d1`, `tone=org/sentiment#label=positive`,
`faithful#score=margin&response=first-sentence`, `helpful=/models/helpful-rm#like=helpful`.

Imports neither torch nor transformers. Refuses to know what a kind makes of its target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from moodpo.errors import RewardSpecError
from moodpo.rewards.function import FunctionReward
from moodpo.rewards.grammar import (
    RewardSpec,
    check_objective_names,
    objective_name,
    split_body,
    split_name,
    split_revision,
)
from moodpo.rewards.kinds import kind_of, kind_of_target

__all__ = [
    "check_columns",
    "check_data",
    "check_reward_specs",
    "parse_spec",
    "rebuild_specs",
    "refuse_text",
]


def parse_spec(text: str) -> RewardSpec:
    """Reads one spec; touches no file beyond asking whether a folder exists.

    Args:
        text: As in the module's first lines.

    Raises:
        RewardSpecError: If it is not of that form or names nothing known.
    """
    text = text.strip()
    name, body = split_name(text)
    if not body:
        raise RewardSpecError("A reward spec is empty. Name a preset, function, folder or Hub id.")
    located, options = split_body(body)
    target, revision = split_revision(located)
    if revision == "":
        raise RewardSpecError(f"{text!r} has an empty revision. Write target@commit, or no @.")
    kind = kind_of_target(target)
    spec: RewardSpec = kind.read(
        RewardSpec(
            text=text,
            name=name or "",
            kind=kind.name,
            target=target,
            revision=revision,
            options=options,
        )
    )
    return spec if spec.name else replace(spec, name=objective_name(spec.target))


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
        target, mark, options = str(spec).partition("#")
        revision = f"@{description['revision']}" if description.get("revision") else ""
        specs.append(f"{name}={target}{revision}{mark}{options}")
    return specs


def check_reward_specs(specs: Sequence[str], *, minimum: int = 2) -> None:
    """Refuses everything that can be refused without loading a model, in well under a second.

    Args:
        specs: One spec per objective.
        minimum: The fewest objectives that make sense; 1 where rewards only judge.

    Raises:
        RewardSpecError: Naming the spec, what is wrong with it, and the remedy.
    """
    refuse_text(specs)
    parsed = [parse_spec(spec) for spec in specs]
    if len(parsed) < minimum:
        raise RewardSpecError(
            f"{minimum} or more rewards are needed, got {len(parsed)}: a trade-off takes two. "
            "Pass for instance: helpful harmless."
        )
    check_objective_names([spec.name for spec in parsed])
    for spec in parsed:
        kind_of(spec).check(spec)


def refuse_text(specs: Sequence[Any]) -> None:
    """Refuses a text where a list of specs is meant: each of its letters would be one."""
    if isinstance(specs, str):
        raise RewardSpecError(f"Rewards are a list of specs, got the text {specs!r}. Pass a list.")


def check_columns(rewards: Sequence[Any], columns: Iterable[str]) -> None:
    """Refuses data that lack what a reward cannot do without; loads no model.

    Args:
        rewards: As for `load_rewards`: specs, callables, models, or rewards.
        columns: Names of the columns beside the prompts; `completion_ids` where the policy's own
            tokens are known.

    Raises:
        RewardSpecError: Naming the reward, what is missing, and the columns there are.
    """
    known = [name for name in columns if name != "prompt"]
    for reward in rewards:
        if isinstance(reward, str):
            spec = parse_spec(reward)
            kind_of(spec).check(spec, known)
        elif hasattr(reward, "check_columns"):
            reward.check_columns(known)
        elif callable(reward) and not (hasattr(reward, "score") or hasattr(reward, "state_dict")):
            FunctionReward.of(reward).check_columns(known)


def check_data(rewards: Sequence[Any], *data: Any) -> None:
    """Refuses data sets of a policy's prompts that lack what a reward function needs.

    Args:
        rewards: As for `load_rewards`.
        data: `LoadedPrompts`, several by name, or None.

    Raises:
        RewardSpecError: As of `check_columns`; the policy's own tokens are known.
    """
    for each in data:
        for loaded in each.values() if isinstance(each, Mapping) else [each]:
            if loaded is not None:
                check_columns(rewards, [*loaded.dataset.column_names, "completion_ids"])
