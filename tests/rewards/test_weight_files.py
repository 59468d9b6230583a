from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from moodpo.rewards.weight_files import find_damage

WHOLE = save({"score.weight": torch.zeros(1, 16), "empty": torch.zeros(0)})
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", WHOLE, None),
        ("model.safetensors", save({}), None),
        ("model.safetensors", b"", "is damaged: it has 0 bytes"),
        ("model.safetensors", WHOLE[:6], "is damaged: it has 6 bytes"),
        ("model.safetensors", WHOLE[:30], "is damaged: it has 30 bytes"),
        ("model.safetensors", WHOLE[:-1], f"is cut off: {len(WHOLE) - 1} of {len(WHOLE)} bytes"),
        ("model.safetensors", b"<html>404: not found</html>", "no whole header"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "header is not readable"),
        ("model-00001-of-00002.safetensors", POINTER, "is a Git LFS pointer.*git lfs pull"),
        ("pytorch_model.bin", POINTER, "is a Git LFS pointer"),
        ("pytorch_model.bin", b"", "is empty"),
        ("pytorch_model.bin", b"PK", None),  # pickles are looked into by whoever loads them
    ],
)
def test_damage_is_seen_by_the_first_bytes(
    tmp_path: Path, name: str, content: bytes, message: str | None
) -> None:
    (tmp_path / name).write_bytes(content)
    found = find_damage(tmp_path)
    if message is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(str(tmp_path / name))
        assert re.search(message, found)
