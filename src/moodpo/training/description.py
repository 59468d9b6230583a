"""Description: what `moodpo.json` says of a run, for serving, evaluation and a next iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from moodpo.manifest import RunManifest
from moodpo.models.savable import describe_base, with_recorded_path
from moodpo.rewards.normalize import Normalizer
from moodpo.training.config import MOODPOConfig
from moodpo.training.reference import Reference
from moodpo.training.rollout import RolloutCollector
from moodpo.training.settings import recorded_settings

__all__ = ["Origin", "describe_run"]

_PACKAGES = ("moodpo", "torch", "transformers", "trl", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a run comes from."""

    lineage: tuple[Mapping[str, Any], ...] = ()  # records of earlier iterations
    task: str = "assistant"
    base: str | None = None  # path or id of the model under the adapter
    start: str | None = None  # checkpoint that the trained parameters come from


def describe_run(
    args: MOODPOConfig,
    collector: RolloutCollector,
    *,
    origin: Origin,
    normalizer: Normalizer,
    reference: Reference,
    steps: int,
    peft: bool,
) -> RunManifest:
    """The manifest of a run as it stands.

    Args:
        args: The settings.
        collector: Knows objectives, rewards and conditioning.
        origin: Where the run comes from.
        normalizer: Reward statistics.
        reference: What the policy is held close to.
        steps: Optimizer steps so far.
        peft: Whether an adapter is trained.
    """
    return RunManifest(
        objectives=collector.conditioner.objectives,
        rewards=tuple(collector.panel.describe()),
        conditioning=collector.conditioner.to_dict(),
        scalarization=args.scalarization,
        normalizer=normalizer.state_dict(),
        reference=with_recorded_path(reference.describe()),
        task=origin.task,
        base_model=describe_base(origin.base, start=origin.start),
        sampling=recorded_settings(args, "sampling"),
        lineage=origin.lineage,
        training={"peft": peft, "steps": steps, **recorded_settings(args, "training")},
        versions={name: version(name) for name in _PACKAGES},
    )
