"""Tiny checkpoints of every architecture, built once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers.utils import logging

from tiny_checkpoints import (
    build_tiny_bart_reward,
    build_tiny_deberta_reward,
    build_tiny_distilbert_reward,
    build_tiny_gpt2_reward,
)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder by preset name: six checkpoints, each with weights of its own."""
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "helpful": build_tiny_gpt2_reward(root / "helpful", seed=1),
        "harmless": build_tiny_gpt2_reward(root / "harmless", seed=2),
        "humor": build_tiny_distilbert_reward(root / "humor", seed=3),
        "deberta": build_tiny_deberta_reward(root / "deberta", seed=4),
        "summary": build_tiny_gpt2_reward(root / "summary", seed=5),
        "faithful": build_tiny_bart_reward(root / "faithful", seed=6),
    }
