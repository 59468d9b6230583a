"""Checks: what can be refused about a classifier before any weight is read.

Reads JSON files of local folders and the configuration of a checkpoint; imports neither torch nor
transformers. Knows nothing of scoring. Shapes: L labels, in order of the logits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moodpo.errors import RewardSpecError
from moodpo.rewards.presets import Preset
from moodpo.rewards.scoring import ClassifierSpec
from moodpo.rewards.weight_files import WEIGHT_PATTERNS, find_damage

__all__ = ["check_config", "check_folder", "own_code", "resolve_label"]

POSITIVE_LABELS = frozenset(
    {"positive", "pos", "good", "helpful", "harmless", "safe", "nontoxic", "faithful"}
    | {"preferred", "chosen", "acceptable", "accepted", "correct", "yes", "true"}
)
"""The one of two labels whose logit is the score when the spec does not say."""

_CAUSAL = ("ForCausalLM", "LMHeadModel")


def check_folder(spec: ClassifierSpec) -> None:
    """Refuses a folder that is no sequence classifier, by reading its JSON files alone."""
    folder = Path(spec.target)
    if (folder / "adapter_config.json").is_file():
        raise RewardSpecError(
            f"{folder} is a LoRA adapter, not a whole model. Merge it into its base "
            "(merge_and_unload, then save_pretrained) and pass that folder."
        )
    try:
        config = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise RewardSpecError(
            f"{folder} has no readable config.json ({type(error).__name__}). Pass the folder that "
            "save_pretrained wrote."
        ) from None
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise RewardSpecError(
            f"{folder} has a config.json but no weights (*.safetensors, pytorch_model*.bin). "
            "Download the whole model."
        )
    check_config(config, spec)
    if damage := find_damage(folder):
        raise RewardSpecError(damage)


def check_config(config: Mapping[str, Any], spec: ClassifierSpec) -> None:
    """Refuses a checkpoint that is no sequence classifier, or whose scored label is unclear.

    Args:
        config: The content of `config.json`.
        spec: Which reward is wanted of it.

    Raises:
        RewardSpecError: For a causal language model, any other head, code of the checkpoint's
            own, or an unresolved label.
    """
    architectures = list(config.get("architectures") or ())
    if "AutoModelForSequenceClassification" in (config.get("auto_map") or {}):
        raise own_code(spec.checkpoint)
    if any(name.endswith(_CAUSAL) for name in architectures):
        raise RewardSpecError(
            f"{spec.checkpoint} is a causal language model ({', '.join(architectures)}), not a "
            "reward model: its score head would be new and random. Pass a sequence classifier."
        )
    if architectures and not any("SequenceClassification" in name for name in architectures):
        raise RewardSpecError(
            f"{spec.checkpoint} is a {', '.join(architectures)}, which has no score head. Pass a "
            "checkpoint whose architecture ends with ForSequenceClassification."
        )
    resolve_label(_label_names(config), spec)


def own_code(source: str) -> RewardSpecError:
    """The refusal of a checkpoint that needs Python code which comes with it."""
    return RewardSpecError(
        f"The reward model {source!r} needs code of its own (auto_map), which is not run here. "
        "Pass a checkpoint of an architecture that transformers has, or score with it in a "
        "function of yours: name=package.module:function."
    )


def resolve_label(names: Sequence[str], spec: ClassifierSpec) -> int:
    """The index of the label whose logit is the score.

    Args:
        names: The checkpoint's labels, in order of its logits.
        spec: With what the user or the preset says about it.

    Raises:
        RewardSpecError: If the preset's label is elsewhere, or it is unclear which one is meant.
    """
    scoring = spec.scoring
    preset, shown = scoring.preset, f"{spec.checkpoint} has labels {', '.join(names)}"
    if scoring.score == "margin" and len(names) < 2:
        raise RewardSpecError(f"{shown}: a margin needs two labels. Drop score=margin.")
    if preset and len(names) != preset.num_labels:
        raise RewardSpecError(
            f"{shown}: preset {preset.name!r} expects {preset.num_labels}. The checkpoint has "
            f"changed, or another one was meant: pin the revision that you know "
            f"({preset.name}@<commit>)."
        )
    if scoring.label is not None:
        return _find_label(names, scoring.label, shown)
    if preset:
        return _preset_label(names, preset, shown)
    if len(names) == 1:
        return 0
    positive = [i for i, name in enumerate(names) if _plain(name) in POSITIVE_LABELS]
    if len(names) == 2 and len(positive) == 1:
        return positive[0]
    raise RewardSpecError(
        f"{shown}: which one is the reward? Say so, as in {spec.target}#label={len(names) - 1}."
    )


def _preset_label(names: Sequence[str], preset: Preset, shown: str) -> int:
    unnamed = all(re.fullmatch(r"label_?\d+", name.lower()) for name in names)
    if preset.label_name and not unnamed and _plain(names[preset.label]) != preset.label_name:
        raise RewardSpecError(
            f"{shown}: preset {preset.name!r} expects {preset.label_name!r} at index "
            f"{preset.label}. The checkpoint has changed: pin the revision that you know "
            f"({preset.name}@<commit>), or say which label you want ({preset.name}#label=...)."
        )
    return preset.label


def _find_label(names: Sequence[str], label: int | str, shown: str) -> int:
    if isinstance(label, int):
        found = [label] if 0 <= label < len(names) else []
    else:
        found = [i for i, name in enumerate(names) if _plain(name) == _plain(label)]
    if len(found) != 1:
        raise RewardSpecError(
            f"{shown}, not {label!r}. Pass one of these names or 0 to {len(names) - 1}."
        )
    return found[0]


def _label_names(config: Mapping[str, Any]) -> list[str]:
    """Labels in order. transformers assumes two where a config says nothing."""
    labels = config.get("id2label")
    if not labels:
        return [f"LABEL_{i}" for i in range(int(config.get("num_labels") or 2))]
    return [str(labels[key]) for key in sorted(labels, key=int)]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
