"""Files of a policy: where its parts are, found without loading any and without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moodpo.errors import ManifestError
from moodpo.files import looks_local
from moodpo.manifest import MANIFEST_NAME, RunManifest
from moodpo.models.embedded import EMBEDDED_NAME, locate_embedded

__all__ = [
    "BASE_REMEDY",
    "EMBEDDED_NAME",
    "PolicyFiles",
    "find_hub_file",
    "find_policy",
    "locate_base",
    "recorded_base",
    "whole_model",
]

BASE_REMEDY = "If the adapter's base model has moved, say where: --base_model, or base_model=."

ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFiles:
    """Where the parts of a policy are, before any is loaded."""

    name: str  # what the user called it
    model: str  # folder or Hub id of the whole model
    tokenizer: str  # folder or Hub id
    adapters: Mapping[str, str] = field(default_factory=dict)  # folders of those on it, by name
    manifest: RunManifest | None = None  # None for a model that moodpo did not train

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
        inside = sorted(p.name for p in folder.glob("checkpoint-*") if p.is_dir())
        hint = f" Did you mean {folder / inside[-1]}?" if inside else ""
        raise ManifestError(
            f"{name} holds no policy (neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}).{hint} Pass "
            "what `moodpo train` wrote."
        )
    return PolicyFiles(name=name, model=str(folder), tokenizer=str(folder), manifest=manifest)


def whole_model(model: str) -> PolicyFiles:
    """A whole model with its tokenizer beside it; whether they are there, loading will tell.

    Args:
        model: A folder, a Hub id, or `embedded`.
    """
    path = locate_base(model) if model == EMBEDDED_NAME else model
    return PolicyFiles(name=model, model=path, tokenizer=path)


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
        said = " ".join(str(error).split())[:160].rstrip(".")
        raise ManifestError(
            f"{repo}: no such folder here, and the Hub gave no policy of that name "
            f"({type(error).__name__}: {said}). Check the spelling and the network."
        ) from error
    if known is None:
        raise ManifestError(f"{repo} on the Hub holds no model. Pass another id.")
    if manifest is None:
        return None
    import huggingface_hub as hub

    return Path(hub.snapshot_download(repo))


def _base_of(folder: Path, manifest: RunManifest | None) -> str:
    if (recorded := recorded_base(manifest)) is not None:
        return recorded
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if base := config.get("base_model_name_or_path"):
        return str(base)
    raise ManifestError(f"{folder} does not name the model under its adapter. Pass base_model.")
