"""A tiny policy, prompts, and one trained run that the commands' tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from moodpo.cli import main
from tiny_policies import save_tiny_policy


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracker, no launcher and no network in any test."""
    for name in [n for n in os.environ if n.startswith("WANDB_")] + ["RANK", "LOCAL_RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `moodpo …` in this process."""

    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("models") / "policy")


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.csv"
    rows = [f"Tell me about {word}." for word in ("tea", "snow", "bees", "chess", "rain", "ink")]
    path.write_text("\n".join(["prompt", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def train_flags(policy: Path, prompts: Path) -> tuple[str, ...]:
    """A run of seconds: what every training test adds its own flags to."""
    flags = f"""--sft_model_path {policy} --csv_path {prompts} --disable_wandb True
        --max_steps 2 --per_device_train_batch_size 2 --max_new_tokens 8 --calibration_prompts 4
        --logging_steps 1 --learning_rate 1e-2 --lora_r 4 --lora_dropout 0 --disable_tqdm True
        --save_steps 1""".split()
    rewards = ("--reward_models", "brevity=tiny_rewards:letters", "detail=tiny_rewards:variety")
    return (*flags, *rewards)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, train_flags: tuple[str, ...]) -> Path:
    """The output folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", *train_flags, "--output_dir", str(folder)]) == 0
    return folder
