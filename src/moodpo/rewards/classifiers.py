"""Classifiers: the two kinds of reward whose score is a logit, presets and any other checkpoint.

Reading and checking them imports neither torch nor transformers; building imports both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moodpo.errors import RewardSpecError
from moodpo.files import looks_local
from moodpo.rewards.checks import check_folder
from moodpo.rewards.grammar import NamedReward, RewardSpec, objective_name, split_body, to_path
from moodpo.rewards.presets import INPUTS, PRESETS, Preset, preset_of_checkpoint
from moodpo.rewards.scoring import ClassifierSpec, read_scoring

if TYPE_CHECKING:
    from moodpo.rewards.base import Reward
    from moodpo.rewards.checkpoint import Checkpoint
    from moodpo.rewards.kinds import Shared

__all__ = ["ModelKind", "PresetKind", "object_spec"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class _ClassifierKind:
    """What presets and models have in common."""

    def build(self, spec: ClassifierSpec, shared: Shared) -> Reward:
        """Loads the checkpoint, unless a reward of the same call did, and reads it as specified."""
        from moodpo.rewards.checkpoint import load_checkpoint, share_backbone
        from moodpo.rewards.model import ModelReward

        loaded: dict[tuple[str, str | None], Checkpoint] = shared.kept.setdefault("checkpoints", {})
        key = (spec.checkpoint, spec.pinned)
        if key not in loaded:
            checkpoint = load_checkpoint(spec, device=shared.device, dtype=shared.dtype)
            share_backbone(checkpoint, loaded.values())
            loaded[key] = checkpoint
        return ModelReward(spec, loaded[key], batch_size=shared.batch_size)


class PresetKind(_ClassifierKind):
    """`helpful`: a checkpoint that goes by name, read as its model card says."""

    name = "preset"
    form = None

    def listed(self) -> list[NamedReward]:
        """Every preset."""
        return [
            NamedReward(
                name=p.name,
                kind=self.name,
                spec=f"{p.checkpoint}@{p.revision}" if p.revision else p.checkpoint,
                input=str(INPUTS[p.input]),
                license=p.license,
                summary=p.summary,
            )
            for p in PRESETS.values()
        ]

    def matches(self, target: str) -> bool:
        """Whether a preset has this very name."""
        return target in PRESETS

    def read(self, spec: RewardSpec) -> ClassifierSpec:
        """Its checkpoint and format, changed by the options."""
        preset = PRESETS[spec.target]
        pinned = spec.revision or preset.revision
        return _classifier_spec(spec, preset.checkpoint, pinned, preset)

    def check(self, spec: ClassifierSpec, columns: Iterable[str] | None = None) -> None:
        """Nothing is known of a checkpoint on the Hub before it is loaded."""


class ModelKind(_ClassifierKind):
    """`./folder` or `owner/model`: any sequence classifier. What no other kind knows may be one."""

    name = "model"
    form = "a folder, a Hub id (owner/model)"

    def listed(self) -> list[NamedReward]:
        """None goes by name."""
        return []

    def matches(self, target: str) -> bool:
        """Whether it is a folder, was meant as one, or could be a Hub id."""
        known = to_path(target).exists() or looks_local(target)
        return known or bool(_HUB_ID.fullmatch(target))

    def read(self, spec: RewardSpec) -> ClassifierSpec:
        """The absolute folder or Hub id; the exact id of a preset's checkpoint has its format."""
        if (folder := to_path(spec.target)).exists():
            if spec.revision:
                raise RewardSpecError(
                    f"{spec.text!r} asks for revision {spec.revision!r} of a local folder, which "
                    "has none. Drop the revision, or pass a Hub id."
                )
            spec = replace(spec, target=str(folder.resolve()))
        preset = preset_of_checkpoint(spec.target)
        return _classifier_spec(spec, spec.target, spec.revision, preset)

    def check(self, spec: ClassifierSpec, columns: Iterable[str] | None = None) -> None:
        """Refuses a folder that does not exist, or holds no reward model."""
        if Path(spec.target).exists():
            check_folder(spec)
        elif looks_local(spec.target):
            raise RewardSpecError(
                f"{spec.target!r} does not exist. Pass the folder of a sequence classifier, a Hub "
                "id (owner/model), or a preset: " + ", ".join(PRESETS) + "."
            )


def object_spec(source: str, text: str | None) -> ClassifierSpec:
    """The spec of a model that was passed as an object.

    Args:
        source: Where it came from, or its class.
        text: `name[#option=value...]`; None names it after its source.

    Raises:
        RewardSpecError: If an option is unknown.
    """
    name, options = split_body(text) if text else (objective_name(source), {})
    spec = RewardSpec(
        text=text or source, name=name, kind=ModelKind.name, target=source, options=options
    )
    return _classifier_spec(spec, source, None, preset_of_checkpoint(source))


def _classifier_spec(
    spec: RewardSpec, checkpoint: str, pinned: str | None, preset: Preset | None
) -> ClassifierSpec:
    return ClassifierSpec(
        text=spec.text,
        name=spec.name,
        kind=spec.kind,
        target=spec.target,
        revision=spec.revision,
        options=spec.options,
        checkpoint=checkpoint,
        pinned=pinned,
        scoring=read_scoring(spec.text, spec.options, preset),
    )
