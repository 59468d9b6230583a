"""`baseline.json`: what a saved baseline must remember to be asked again.

Plain data, written beside the adapters; reading it imports no torch, so that a command can look
before it loads. Knows nothing of how any baseline works. Shapes: K objectives.
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

__all__ = ["BASELINE_NAME", "BaselineRecord", "is_baseline"]

BASELINE_NAME = "baseline.json"
SCHEMA, VERSION = "moodpo.baseline", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRecord:
    """The content of `baseline.json`.

    Attributes:
        kind: `prompting`, `soups`, `fixed` or `ric`.
        conditioning: How weights would be written, and in what order (`Conditioner.to_dict`).
        rewards: One description per objective, enough for `rewards.rebuild_specs`.
        base_model: Path or id of the model under the adapters.
        sampling: The fields of `SamplingConfig` that completions were trained with.
        adapters: Names of the adapters, each a folder in `adapters/`.
        details: What only this kind needs.
        training: What training took: completions, seconds, steps.
        versions: Package name to version.
    """

    kind: str
    conditioning: Mapping[str, Any]
    rewards: tuple[Mapping[str, Any], ...] = ()
    base_model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def objectives(self) -> tuple[str, ...]:
        """K names, in the order of every weight vector."""
        return tuple(self.conditioning["objectives"])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `baseline.json` into a folder, atomically."""
        path = Path(folder) / BASELINE_NAME
        write_json(path, {"schema": SCHEMA, "version": VERSION, **asdict(self)})
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> BaselineRecord:
        """Reads the `baseline.json` of a folder.

        Args:
            folder: What a baseline's `save` wrote.

        Raises:
            ManifestError: If the file is missing, damaged, or of another schema or version.
        """
        path = Path(folder) / BASELINE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = values.pop("schema"), values.pop("version")
        except FileNotFoundError:
            raise ManifestError(
                f"No {BASELINE_NAME} in {folder}. Pass a folder that a baseline was saved to."
            ) from None
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ManifestError(
                f"{path} is damaged ({error!r}). Train the baseline again."
            ) from None
        if found != (SCHEMA, VERSION):
            raise ManifestError(
                f"{path} is {found[0]} version {found[1]}; this moodpo reads {SCHEMA} version "
                f"{VERSION}. Use the moodpo release that wrote it."
            )
        known = {f.name for f in fields(cls)}
        if values.keys() != known:
            odd = sorted(values.keys() ^ known)
            raise ManifestError(f"{path} has missing or unknown entries {odd}. Train it again.")
        for name in ("rewards", "adapters"):
            values[name] = tuple(values[name])
        return cls(**values)


def is_baseline(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a saved baseline."""
    return (Path(folder) / BASELINE_NAME).is_file()
