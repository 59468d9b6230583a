"""`moodpo env`: versions without secrets."""

from __future__ import annotations

import torch


def test_versions_and_devices(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-key")
    monkeypatch.setenv("HF_HOME", "/home/someone")
    outcome = run("env")
    assert outcome.code == 0
    rows = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert rows["torch"] == torch.__version__
    assert rows["HF_HUB_OFFLINE"] == "1"
    assert rows["HF_HOME"] == "set"
    assert "secret-key" not in outcome.out
    assert "someone" not in outcome.out
