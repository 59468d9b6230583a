"""What can be continued, asked from Python and from the command line alike."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from moodpo.errors import ConfigError, ManifestError
from moodpo.training.checkpoints import delete_run, find_checkpoint, holds_run
from tiny_trainers import assert_same, capitals, make_trainer, parameters, vowels

FILES = ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "moodpo.json"]


def checkpoint(path):
    path.mkdir(parents=True)
    for name in (*FILES, "moodpo_state.json", "model.safetensors"):
        (path / name).write_text("{}")
    return path


def test_the_newest_complete_one(tmp_path):
    checkpoint(tmp_path / "checkpoint-9")
    newest = checkpoint(tmp_path / "checkpoint-10")
    checkpoint(tmp_path / "checkpoint-old")
    passed_over = []
    assert find_checkpoint(True, tmp_path, warn=passed_over.append) == newest
    (newest / "model.safetensors").unlink()
    assert find_checkpoint(True, tmp_path, warn=passed_over.append).name == "checkpoint-9"
    assert passed_over == [f"{newest} lacks *.safetensors; trying the one before."]


@pytest.mark.parametrize("asked", ["nowhere", "", "checkpoint-3/optimizer.pt"])
def test_no_folder(asked, tmp_path):
    checkpoint(tmp_path / "checkpoint-3")
    with pytest.raises(ConfigError, match=r"does not exist|lacks"):
        find_checkpoint(tmp_path / asked, tmp_path, warn=print)


def test_the_folder_around_a_checkpoint_names_it(tmp_path):
    inside = checkpoint(tmp_path / "checkpoint-3")
    with pytest.raises(ConfigError, match=f"Did you mean {inside}"):
        find_checkpoint(str(tmp_path), tmp_path, warn=print)


def test_a_run_is_deleted_and_nothing_else(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine")
    assert not holds_run(tmp_path)
    delete_run(tmp_path)
    assert (tmp_path / "metrics.jsonl").is_file()
    checkpoint(tmp_path / "checkpoint-3")
    (tmp_path / "notes.txt").write_text("mine")
    assert holds_run(tmp_path)
    delete_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two steps with a checkpoint after each, and the parameters after both."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = make_trainer(folder, save_strategy="steps", save_steps=1)
    trainer.train()
    return folder, parameters(trainer)


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_trainer_goes_on_from_any_way_of_naming_its_checkpoint(run, finished, caplog):
    (run / "checkpoint-2" / "optimizer.pt").unlink()
    for asked in (True, run / "checkpoint-1", str(run / "checkpoint-1")):
        trainer = make_trainer(run, save_strategy="no")
        with caplog.at_level(logging.WARNING):
            trainer.train(resume_from_checkpoint=asked)
        assert_same(parameters(trainer), finished[1], rtol=0, atol=0)
    assert "checkpoint-2 lacks optimizer.pt; trying the one before" in caplog.text


@pytest.mark.parametrize("name", [*FILES, "moodpo_state.json", "model.safetensors"])
def test_a_trainer_refuses_an_incomplete_checkpoint(name, run):
    (run / "checkpoint-1" / name).unlink()
    with pytest.raises(ConfigError, match="cannot be continued exactly"):
        make_trainer(run).train(resume_from_checkpoint=str(run / "checkpoint-1"))


def test_a_trainer_refuses_what_is_no_checkpoint(run, tmp_path):
    trainer = make_trainer(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"checkpoint True: .*other has no checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match=r"nowhere does not exist"):
        trainer.train(resume_from_checkpoint=Path("nowhere"))
    assert trainer.state.global_step == 0


def test_a_trainer_refuses_a_checkpoint_of_other_objectives(run):
    with pytest.raises(ManifestError, match="the order of objectives"):
        make_trainer(run, rewards=(capitals, vowels)).train(resume_from_checkpoint=True)
