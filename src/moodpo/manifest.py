"""`moodpo.json`: what a trained policy must remember to be evaluated, served or trained further.

Knows nothing of models: it is plain data, written atomically beside the weights. Training writes
it; serving, evaluation and a next iteration read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from moodpo.errors import ManifestError
from moodpo.files import write_json

__all__ = ["MANIFEST_NAME", "RunManifest", "check_continuation"]

MANIFEST_NAME = "moodpo.json"
SCHEMA, VERSION = "moodpo.run", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunManifest:
    """The content of `moodpo.json`.

    Attributes:
        objectives: Names, in the order of every weight vector.
        rewards: One description per objective: name, kind, spec, revision.
        conditioning: How weights become an instruction (`Conditioner.to_dict`).
        scalarization: `linear` or `chebyshev`.
        normalizer: The normalizer's kind and statistics, exact.
        reference: What the KL anchor was: kind, path and hash.
        task: `assistant` or `summary`.
        base_model: Id or path of the model under the adapter, with its revision.
        sampling: What completions were trained with: lengths, temperature, top_p, top_k.
        lineage: Earlier iterations, oldest first: path, adapter hash, steps.
        training: The settings that shaped the run.
        versions: moodpo, torch, transformers, trl, peft.
    """

    objectives: tuple[str, ...]
    rewards: tuple[Mapping[str, Any], ...]
    conditioning: Mapping[str, Any]
    scalarization: str
    normalizer: Mapping[str, Any]
    reference: Mapping[str, Any]
    task: str = "assistant"
    base_model: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `moodpo.json` into a folder, atomically."""
        path = Path(folder) / MANIFEST_NAME
        write_json(path, {"schema": SCHEMA, "version": VERSION, **asdict(self)})
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> RunManifest:
        """Reads the `moodpo.json` of an output folder or checkpoint.

        Args:
            folder: An output folder or a checkpoint in it.

        Raises:
            ManifestError: If the file is missing, damaged, or of another schema or version.
        """
        path = Path(folder) / MANIFEST_NAME
        if not path.is_file():
            raise ManifestError(
                f"No {MANIFEST_NAME} in {folder}. It is written by `moodpo train`: pass an output "
                "folder or a checkpoint that holds one, or say --reward_models for a plain model."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            schema, version = values.pop("schema"), values.pop("version")
        except (ValueError, KeyError, AttributeError) as error:
            raise ManifestError(
                f"{path} is damaged ({error!r}). Restore it from another checkpoint of the run."
            ) from None
        if (schema, version) != (SCHEMA, VERSION):
            raise ManifestError(
                f"{path} is {schema} version {version}; this moodpo reads {SCHEMA} version "
                f"{VERSION}. Use the moodpo release that wrote it."
            )
        return cls._from_values(values, path)

    @classmethod
    def _from_values(cls, values: dict[str, Any], path: Path) -> RunManifest:
        known = {f.name for f in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ManifestError(f"{path} has unknown entries {unknown}. Remove them.")
        for name in ("objectives", "rewards", "lineage"):
            values[name] = tuple(values.get(name, ()))
        try:
            return cls(**values)
        except TypeError as error:
            raise ManifestError(
                f"{path} is incomplete ({error}). Restore it from another checkpoint of the run."
            ) from None


def check_continuation(previous: RunManifest, current: RunManifest, *, source: str) -> None:
    """Refuses a next iteration that would read the weights differently from the last one.

    Args:
        previous: Of the checkpoint that training starts from.
        current: Of the run about to start.
        source: The checkpoint's path, for the message.

    Raises:
        ManifestError: Naming the first mismatch: objectives, their order, or the conditioning.
    """
    problem: tuple[str, Any, Any]
    if set(previous.objectives) != set(current.objectives):
        problem = ("objectives", previous.objectives, current.objectives)
    elif previous.objectives != current.objectives:
        problem = ("the order of objectives", previous.objectives, current.objectives)
    elif previous.conditioning != current.conditioning:
        name = next(
            key
            for key in {**previous.conditioning, **current.conditioning}
            if previous.conditioning.get(key) != current.conditioning.get(key)
        )
        problem = (name, previous.conditioning.get(name), current.conditioning.get(name))
    else:
        return
    what, old, new = problem
    raise ManifestError(
        f"Cannot continue from {source}: it was trained with {what} = {_show(old)}, this run has "
        f"{_show(new)}. Pass the same --reward_models, weight format and chat_template_kwargs, or "
        "start fresh without --model_path."
    )


def _show(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else repr(value)
