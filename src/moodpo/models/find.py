"""Files of a policy: where its parts are, found without loading any and without torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moodpo.errors import ConfigError, ManifestError, MissingDependencyError, one_line
from moodpo.files import ADAPTER_CONFIG, MODEL_CONFIG, looks_local
from moodpo.manifest import MANIFEST_NAME, RunManifest
from moodpo.models.embedded import EMBEDDED_NAME, locate_embedded

__all__ = [
    "BASE_REMEDY",
    "EMBEDDED_NAME",
    "PolicyFiles",
    "check_reference",
    "checkpoints_in",
    "find_hub_file",
    "find_model",
    "find_policy",
    "find_start",
    "has_weights",
    "locate_base",
    "recorded_base",
    "same_model",
    "whole_model",
]

BASE_REMEDY = "If the adapter's base model has moved, say where: --base_model, or base_model=."

TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = ("tokenizer.json", TOKENIZER_CONFIG, "tokenizer.model", "vocab.json")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFiles:
    """Where the parts of a policy are, before any is loaded."""

    name: str  # what the user called it
    model: str  # folder or Hub id of the whole model
    tokenizer: str  # folder or Hub id
    adapters: Mapping[str, str] = field(default_factory=dict)  # folders of those on it, by name
    manifest: RunManifest | None = None  # None for a model that moodpo did not train
    config: Mapping[str, Any] = field(default_factory=dict)  # config.json, of `find_model`

    @property
    def adapter(self) -> str | None:
        """Folder of the first adapter, if there is one."""
        return next(iter(self.adapters.values()), None)

    @property
    def path(self) -> str:
        """The folder or Hub id whose weights tell this policy from others."""
        return self.adapter or self.model


def find_policy(policy: str | Path, *, base_model: str | None = None) -> PolicyFiles:
    """Finds the parts of a policy without loading any.

    Args:
        policy: An output folder, a checkpoint, a model folder, a Hub id, or `embedded`.
        base_model: The model under its adapter; where training left it when None.

    Raises:
        ManifestError: If a folder holds no policy, or its base model is not to be found.
    """
    name = str(policy)
    folder = Path(locate_base(name) if name == EMBEDDED_NAME else name).expanduser()
    if not folder.is_dir():
        if looks_local(name):
            raise ManifestError(f"{name} does not exist. Pass what `moodpo train` wrote.")
        downloaded = _find_on_hub(name)
        if downloaded is None:
            return whole_model(name)
        folder = downloaded
    manifest = RunManifest.load(folder) if (folder / MANIFEST_NAME).is_file() else None
    if (folder / ADAPTER_CONFIG).is_file():
        base = base_model or _base_of(folder, manifest)
        tokenizer = str(folder) if (folder / TOKENIZER_CONFIG).is_file() else locate_base(base)
        return PolicyFiles(
            name=name,
            model=locate_base(base),
            tokenizer=tokenizer,
            adapters={"default": str(folder)},
            manifest=manifest,
        )
    if not (folder / MODEL_CONFIG).is_file():
        raise ManifestError(
            f"{name} holds no policy (neither {ADAPTER_CONFIG} nor {MODEL_CONFIG})."
            f"{_hint(folder)} Pass what `moodpo train` wrote."
        )
    return PolicyFiles(name=name, model=str(folder), tokenizer=str(folder), manifest=manifest)


def whole_model(model: str) -> PolicyFiles:
    """A whole model with its tokenizer beside it; whether they are there, loading will tell.

    Args:
        model: A folder, a Hub id, or `embedded`.
    """
    path = locate_base(model) if model == EMBEDDED_NAME else model
    return PolicyFiles(name=model, model=path, tokenizer=path)


def find_model(path: str, *, flag: str) -> PolicyFiles:
    """Finds a whole causal language model, complete as far as its files' names go.

    Args:
        path: A folder, a Hub id, or `embedded`.
        flag: What the user called it, for messages.

    Raises:
        ConfigError: If there is none, or it is something else.
    """
    path = whole_model(path).model
    folder = Path(path).expanduser()
    if folder.is_dir():
        _check_model_folder(folder, flag)
        place, config = os.path.abspath(folder), _read_json(folder / MODEL_CONFIG)
    elif looks_local(path):
        raise ConfigError(
            f"{flag} {path} does not exist. Pass a model folder, a Hub id (owner/name), or "
            "`embedded`."
        )
    else:
        place, config = path, _hub_config(path, flag)
    kinds = list(config.get("architectures") or ())
    if any("SequenceClassification" in kind for kind in kinds):
        raise ConfigError(
            f"{flag} {place} is a classifier ({', '.join(kinds)}), not a language model. Pass it "
            "as one of --reward_models."
        )
    return PolicyFiles(name=path, model=place, tokenizer=place, config=config)


def find_start(path: str, *, model: PolicyFiles, flag: str) -> PolicyFiles:
    """Finds the checkpoint of an earlier iteration, from which a run starts.

    Args:
        path: Of an adapter or a whole model.
        model: What lies under it, if it is an adapter.
        flag: What the user called it, for messages.

    Raises:
        ConfigError: If there is no checkpoint, or it has no weights.
        ManifestError: If its `moodpo.json` cannot be read.
    """
    folder = Path(path).expanduser()
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if not is_adapter and not (folder / MODEL_CONFIG).is_file():
        raise ConfigError(f"{flag} {path} {_missing_checkpoint(folder)}")
    if not has_weights(folder):
        raise ConfigError(f"{flag} {path} has no weights. Pass a complete checkpoint.")
    place = os.path.abspath(folder)  # it is recorded, and read from other folders
    return PolicyFiles(
        name=path,
        model=model.model if is_adapter else place,
        tokenizer=model.tokenizer,
        adapters={"default": place} if is_adapter else {},
        manifest=RunManifest.load(folder) if (folder / MANIFEST_NAME).is_file() else None,
    )


def check_reference(reference: str, *, flag: str) -> None:
    """Refuses a reference that is neither a checkpoint here nor a Hub id.

    Args:
        reference: A path or id; not `base` or `initial`.
        flag: What the user called it, for messages.

    Raises:
        ConfigError: If it cannot be one.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in (ADAPTER_CONFIG, MODEL_CONFIG)):
            raise ConfigError(f"{flag} {reference} {_missing_checkpoint(folder)}")
    elif looks_local(reference) or "/" not in reference:
        raise ConfigError(
            f"{flag} {reference} is neither base nor initial, nor a folder or Hub id. Pass one of "
            "them."
        )


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's or an adapter's weights."""
    return any(any(folder.glob(p)) for p in ("*.safetensors", "pytorch_model*.bin"))


def same_model(first: str, second: str) -> bool:
    """Whether two names of base models mean one, as far as can be told here."""
    try:
        first, second = locate_base(first), locate_base(second)
    except (ManifestError, MissingDependencyError):
        return False  # it is not here any more
    return first == second or (
        Path(first).is_dir() and Path(first).resolve() == Path(second).resolve()
    )


def recorded_base(manifest: RunManifest | None) -> str | None:
    """The base model that a manifest names, in words that `locate_base` understands."""
    if manifest is None:
        return None
    if manifest.base_model.get("package"):
        return EMBEDDED_NAME  # told apart from the Hub's model of the same name
    base = manifest.base_model.get("path")
    return None if base is None else str(base)


def locate_base(base: str) -> str:
    """Where a base model is now: the embedded one may have to be converted again.

    Args:
        base: Folder or Hub id, as training recorded it.

    Raises:
        ManifestError: If it was a folder and is gone.
    """
    if Path(base).is_dir():
        return base
    if (embedded := locate_embedded(base)) is not None:
        return embedded
    if looks_local(base):
        raise ManifestError(f"The policy's base model {base} is not there any more. {BASE_REMEDY}")
    return base


def find_hub_file(repo: str, name: str) -> Path | None:
    """A file of a Hub repository, from the cache or else from the Hub; None if it has no such file.

    Asks once before downloading: the Hub's client retries for half a minute where there is no
    network.

    Args:
        repo: owner/name.
        name: Of the file.

    Raises:
        Exception: Whatever the Hub's client raises without a network, or for an unknown repository.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    cached = hub.try_to_load_from_cache(repo, name)
    if isinstance(cached, str):
        return Path(cached)
    if isinstance(hub.try_to_load_from_cache(repo, MODEL_CONFIG), str) and name == MANIFEST_NAME:
        return None  # a plain model that is here already: nothing to ask the Hub
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, name), timeout=4)
    except EntryNotFoundError:
        return None
    return Path(hub.hf_hub_download(repo, name))


def _find_on_hub(repo: str) -> Path | None:
    """The snapshot of a Hub policy that carries a `moodpo.json`; None for a plain model."""
    try:
        manifest = find_hub_file(repo, MANIFEST_NAME)
        known = manifest or find_hub_file(repo, MODEL_CONFIG)
    except Exception as error:  # whatever the HTTP library raises
        raise ManifestError(
            f"{repo}: no such folder here, and the Hub gave no policy of that name "
            f"({_said(error)}). Check the spelling and the network."
        ) from error
    if known is None:
        raise ManifestError(f"{repo} on the Hub holds no model. Pass another id.")
    if manifest is None:
        return None
    import huggingface_hub as hub

    return Path(hub.snapshot_download(repo))


def _check_model_folder(folder: Path, flag: str) -> None:
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / MODEL_CONFIG).is_file():
        base = _read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "BASE"
        raise ConfigError(
            f"{flag} {folder} is a LoRA adapter, not a whole model. Pass {flag} {base} "
            f"--model_path {folder}."
        )
    if not (folder / MODEL_CONFIG).is_file() or not has_weights(folder):
        raise ConfigError(
            f"{flag} {folder} holds no model ({MODEL_CONFIG} and *.safetensors). Pass the folder "
            "that save_pretrained wrote."
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(
            f"{flag} {folder} holds no tokenizer. Save it there too: tokenizer.save_pretrained."
        )


def _hub_config(path: str, flag: str) -> dict[str, Any]:
    try:
        found = find_hub_file(path, MODEL_CONFIG)
    except Exception as error:  # whatever the HTTP library raises
        raise ConfigError(
            f"{flag} {path}: no such folder here, and the Hub gave no model of that name "
            f"({_said(error)}). Check the spelling, the network and `hf auth login`."
        ) from error
    if found is None:
        raise ConfigError(f"{flag} {path} on the Hub holds no whole model. Pass another id.")
    return _read_json(found)


def _missing_checkpoint(folder: Path) -> str:
    if not folder.exists():
        return "does not exist. Pass a checkpoint folder such as outputs/iter1/checkpoint-500."
    return f"is no checkpoint: it has neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}.{_hint(folder)}"


def _hint(folder: Path) -> str:
    inside = checkpoints_in(folder)
    return f" Did you mean {inside[-1]}?" if inside else ""


def _said(error: Exception) -> str:
    said = one_line(error, at_most=160)
    return f"{type(error).__name__}: {said}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Restore the file.") from None
    return content if isinstance(content, dict) else {}


def _base_of(folder: Path, manifest: RunManifest | None) -> str:
    if (recorded := recorded_base(manifest)) is not None:
        return recorded
    if base := _read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"):
        return str(base)
    raise ManifestError(f"{folder} does not name the model under its adapter. Pass base_model.")
