"""Weight files: what can be wrong with them, found by their first bytes. Loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["WEIGHT_PATTERNS", "find_damage"]

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the format's own limit


def find_damage(folder: Path) -> str | None:
    """What is wrong with the first damaged weight file of a folder; None if nothing is seen."""
    files = sorted(file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern))
    return next(_reports(files), None)


def _reports(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            if problem := _problem(file):
                yield f"{file} {problem}"
        except OSError as error:
            yield f"{file} cannot be read ({error.strerror}). Check its permissions."


def _problem(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            return "is a Git LFS pointer, not the weights themselves. Run `git lfs pull`."
        if file.suffix != ".safetensors":
            return None if size else "is empty. Download it again."
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        if size < _LENGTH_BYTES or length > min(size, _LONGEST_HEADER):
            return f"is damaged: it has {size} bytes and no whole header. Download it again."
        opened.seek(_LENGTH_BYTES)
        header = opened.read(length)
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = _LENGTH_BYTES + length + max((t["data_offsets"][1] for t in tensors), default=0)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return "is damaged: its header is not readable. Download it again."
    if size < expected:
        return f"is cut off: {size} of {expected} bytes are there. Download it again."
    return None
