"""Bad input is refused fast, with a remedy, and before torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moodpo.cli import checks
from moodpo.cli.settings import read_settings
from moodpo.errors import (
    ConfigError,
    InputError,
    ManifestError,
    MissingDependencyError,
    RewardSpecError,
)
from moodpo.manifest import RunManifest
from moodpo.models.find import whole_model

REWARDS = ("--reward_models", "brevity", "detail")
SFT_MODEL = whole_model("m")


def settings(*flags):
    return read_settings(
        ["--sft_model_path", "m", "--csv_path", "p.csv", *REWARDS, *map(str, flags)]
    )


def manifest(objectives=("brevity", "detail"), **values):
    return RunManifest(
        objectives=objectives,
        rewards=(),
        conditioning={},
        scalarization="linear",
        normalizer={},
        reference={},
        **values,
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A complete checkpoint, as far as its files' names go."""
    folder = tmp_path / "out" / "checkpoint-3"
    folder.mkdir(parents=True)
    names = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
    for name in (*names, "rng_state.pth", "trainer_state.json", "moodpo_state.json"):
        (folder / name).write_text("{}")
    manifest(training={"steps": 3}).save(folder)
    return folder


# --- flags ---


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (["--sft_model_path", "m"], "--csv_path, --reward_models"),
        (["--csv_path", "p.csv", "--reward_models", "a", "b"], "--sft_model_path"),
    ],
)
def test_all_three_or_none(flags, missing):
    with pytest.raises(ConfigError, match=f"Missing: {missing}\\."):
        checks.check_settings(read_settings(flags))
    checks.check_settings(read_settings([]))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["helpfull", "harmless"], r"Unknown reward 'helpfull'\. Did you mean helpful"),
        (["helpful"], "2 or more rewards are needed, got 1"),
        (["helpful", "helpful"], "2 rewards are named 'helpful'"),
        (["helpful", "./nowhere"], "does not exist"),
    ],
)
def test_reward_specs(specs, message):
    given = read_settings(["--sft_model_path", "m", "--csv_path", "p", "--reward_models", *specs])
    with pytest.raises(RewardSpecError, match=message):
        checks.check_settings(given)


def test_a_causal_model_is_no_reward(policy):
    given = settings("--reward_models", "brevity", policy)
    with pytest.raises(RewardSpecError, match="causal language model"):
        checks.check_settings(given)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--load_in_4bit", "True"], MissingDependencyError, r"pip install bitsandbytes"),
        (["--load_in_8bit", "True", "--use_peft", "False"], ConfigError, "--use_peft True"),
        (["--sweep_weights", "1"], ConfigError, "0 or at least 2"),
        (["--sweep_weights", "3"], ConfigError, "Pass --eval_csv_path"),
        (
            ["--sweep_weights", "3", "--eval_csv_path", "e", "--sweep_prompts", "0"],
            ConfigError,
            "sweep_prompts must be at least 1",
        ),
    ],
)
def test_flags_that_cannot_work(flags, error, message):
    with pytest.raises(error, match=message):
        checks.check_settings(settings(*flags))


# --- earlier iterations ---


@pytest.mark.parametrize(
    ("trained_for", "what"),
    [(("helpful", "detail"), "objectives"), (("detail", "brevity"), "the order of objectives")],
)
def test_a_start_for_other_objectives_is_refused(checkpoint, trained_for, what):
    manifest(trained_for).save(checkpoint)
    with pytest.raises(ManifestError, match=f"trained with {what} ="):
        checks.find_start(settings("--model_path", checkpoint), SFT_MODEL)


# --- resuming ---


@pytest.mark.parametrize("value", [None, "False", "no"])
def test_no_resumption(value):
    flags = [] if value is None else ["--resume_from_checkpoint", value]
    assert checks.resume_checkpoint(settings(*flags)) is None


def test_the_last_complete_checkpoint_is_resumed(checkpoint, capsys):
    later = checkpoint.with_name("checkpoint-12")
    shutil.copytree(checkpoint, later)
    asked = settings("--output_dir", checkpoint.parent, "--resume_from_checkpoint", "True")
    assert checks.resume_checkpoint(asked) == str(later)
    (later / "optimizer.pt").unlink()
    assert checks.resume_checkpoint(asked) == str(checkpoint)
    assert "checkpoint-12 lacks optimizer.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
        *("moodpo_state.json", "moodpo.json", "adapter_model.safetensors"),
    ],
)
def test_an_incomplete_checkpoint_is_not_resumed(checkpoint, name):
    asked = settings("--resume_from_checkpoint", checkpoint)
    assert checks.resume_checkpoint(asked) == str(checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(ConfigError, match="cannot be continued exactly"):
        checks.resume_checkpoint(asked)


def test_nothing_to_resume(tmp_path):
    asked = settings("--output_dir", tmp_path, "--resume_from_checkpoint", "True")
    with pytest.raises(ConfigError, match="has no checkpoint"):
        checks.resume_checkpoint(asked)


def test_a_resumed_iteration_needs_its_start(checkpoint):
    manifest(base_model={"path": "m", "start": "iter1"}).save(checkpoint)
    with pytest.raises(ConfigError, match="started from --model_path iter1"):
        checks.resume_checkpoint(settings("--resume_from_checkpoint", checkpoint))


# --- output ---


def test_another_run_is_not_overwritten(checkpoint):
    folder = checkpoint.parent
    asked = settings("--output_dir", folder)
    with pytest.raises(ConfigError, match="holds a run already"):
        checks.check_output(asked, None)
    checks.check_output(asked, str(checkpoint))  # resuming is fine
    checks.check_output(settings("--output_dir", folder / "new"), None)
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        checks.check_output(settings("--output_dir", folder / "file"), None)


def test_overwriting_deletes_a_run_and_nothing_else(checkpoint):
    folder = checkpoint.parent
    manifest().save(folder)
    for name in ("metrics.jsonl", "notes.txt", "checkpoint-best"):
        (folder / name).write_text("")
    asked = settings("--output_dir", folder, "--overwrite", "True")
    checks.check_output(asked, None)
    checks.clear_output(settings("--output_dir", folder))  # not asked for: nothing happens
    assert checkpoint.is_dir()
    checks.clear_output(asked)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-best", "notes.txt"]


def test_a_folder_without_a_run_is_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine")
    checks.clear_output(settings("--output_dir", tmp_path, "--overwrite", "True"))
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


def test_overwriting_must_not_delete_the_start(checkpoint):
    flags = ["--output_dir", checkpoint.parent, "--overwrite", "True", "--model_path", checkpoint]
    with pytest.raises(ConfigError, match="would delete --model_path"):
        checks.check_output(settings(*flags), None)


# --- the whole command, in its own process ---

BAD_COMMANDS = {
    "unknown flag": (["--csv_pth", "x"], "Did you mean --csv_path"),
    "no such file": (["--csv_path", "nope.csv"], "nope.csv"),
    "no such column": (["--prompt_column", "promt"], "did you mean 'prompt'"),
    "unknown reward": (["--reward_models", "helpfull", "humor"], "Did you mean helpful"),
    "one reward": (["--reward_models", "humor"], "2 or more rewards"),
    "no such model": (["--sft_model_path", "./nope"], "does not exist"),
    "no such start": (["--model_path", "./nope"], "does not exist"),
}


def test_bad_input_exits_with_2_and_never_loads_torch(policy, prompts, tmp_path):
    flags = ["train", "--sft_model_path", policy, "--csv_path", prompts, *REWARDS]
    commands = [[*map(str, flags), *bad] for bad, _ in BAD_COMMANDS.values()]
    code = (
        "import json, sys; from moodpo.cli import main\n"
        "for argv in json.load(sys.stdin): print('EXIT', main(argv), file=sys.stderr)\n"
        "print([n for n in ('torch', 'peft') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "[]"
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(commands), done.stderr
    for i, (_, remedy) in enumerate(BAD_COMMANDS.values()):
        assert lines[2 * i].startswith("moodpo: error: ")
        assert remedy in lines[2 * i]
        assert lines[2 * i + 1] == "EXIT 2"
    assert list(Path(tmp_path).iterdir()) == []


def test_every_refusal_is_an_input_error():
    for error in (ConfigError, ManifestError, RewardSpecError):
        assert issubclass(error, InputError)


def test_numbers_are_found_and_refused_before_the_parser_is_imported():
    from moodpo.cli.checks import check_numbers

    found = check_numbers(["--beta", "0.2", "--top_k=5", "--beta", "0.3", "--run_name", "beta"])
    assert found == {"beta": 0.3, "top_k": 5}
    assert check_numbers(["--beta", "x", "--top_p"]) == {}
    with pytest.raises(ConfigError, match="beta must be at least"):
        check_numbers(["--beta", "-1"])
    with pytest.raises(ConfigError, match="top_p must be at least"):
        check_numbers(["--top_p=2"])
