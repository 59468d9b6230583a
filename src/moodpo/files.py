"""Files that a crash leaves whole, in JSON that everyone reads, with the umask's modes.

Knows nothing of what is stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "ADAPTER_CONFIG",
    "MODEL_CONFIG",
    "hash_file",
    "hash_weights",
    "json_line",
    "looks_local",
    "replacing",
    "share_files",
    "without_non_finite",
    "write_json",
    "write_text",
]

ADAPTER_CONFIG, MODEL_CONFIG = "adapter_config.json", "config.json"  # of peft, of transformers


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Within it, a file beside another is written; it takes the other's place whole, or not at all.

    Args:
        path: The file to be replaced; its folder must exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file atomically: a reader sees the old one or the new one, never half of one.

    Args:
        path: The file; its folder is made when missing.
        text: All of it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Writes JSON atomically; NaN and infinities, which JSON has not, are written as null.

    Raises:
        TypeError: If the values hold what JSON cannot.
    """
    text = json.dumps(without_non_finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def json_line(values: Any) -> str:
    """One line of a JSONL file, NaN and infinities as null, without the line break."""
    return json.dumps(without_non_finite(values), ensure_ascii=False, allow_nan=False)


def without_non_finite(values: Any) -> Any:
    """The same lists and mappings, with None for every number that is NaN or infinite."""
    if isinstance(values, Mapping):
        return {key: without_non_finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [without_non_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def share_files(folder: str | os.PathLike[str]) -> None:
    """Gives files that a library wrote for their owner alone the modes that the umask allows.

    safetensors writes into a private temporary file that it renames.

    Args:
        folder: Whose files are looked at; not those of folders in it.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    for path in Path(folder).iterdir():
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600:
            path.chmod(0o666 & ~umask)


def hash_file(path: str | os.PathLike[str]) -> str:
    """Sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_weights(folder: str | os.PathLike[str]) -> str | None:
    """Sha256 over a folder's safetensors files, in name order; None where there are none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def looks_local(target: str) -> bool:
    """Whether a target that may not exist was meant as a folder rather than a Hub id."""
    if target.startswith(("/", ".", "~")) or target.count("/") > 1 or "\\" in target:
        return True
    return "/" in target and Path(target).parent.is_dir()
