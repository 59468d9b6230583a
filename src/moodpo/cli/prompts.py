"""Prompts that a command names: a file, a Hub dataset, or those that ship with moodpo."""

from __future__ import annotations

from typing import Literal

from moodpo.data.prompts import LoadedPrompts, embedded_prompts, load_prompts
from moodpo.models.find import EMBEDDED_NAME

__all__ = ["read_prompts"]


def read_prompts(
    source: str,
    *,
    column: str,
    embedded: Literal["train", "heldout"],
    split: str = "train",
    max_samples: int | None = None,
) -> LoadedPrompts:
    """Reads prompts; imports no torch.

    Args:
        source: A file, a Hub dataset, or `embedded`.
        column: Of the prompts.
        embedded: Which of the embedded prompts `embedded` means.
        split: Of a Hub dataset.
        max_samples: At most so many.

    Raises:
        DataError: If they cannot be read or used.
    """
    if source == EMBEDDED_NAME:
        source, column = str(embedded_prompts(embedded)), "prompt"
    return load_prompts(source, prompt_column=column, split=split, max_samples=max_samples)
