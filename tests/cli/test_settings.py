"""Settings of `moodpo train`: precedence, aliases, the embedded default, the documented flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from documented_commands import documented_commands
from moodpo.cli.settings import read_settings, train_help
from moodpo.cli.tracking import choose_trackers
from moodpo.errors import ConfigError
from moodpo.recipes import EMBEDDED, TASKS

USER = ("--sft_model_path", "m", "--csv_path", "p.csv", "--reward_models", "a", "b")


def config(settings):
    return settings.training_config(use_cpu=True, report_to=[])


def test_the_documented_flags_are_read_literally():
    commands = documented_commands(sft="org/model", data=Path("/d"), root=Path("/r"), step=7)
    for command, exp_type, model_path, rewards in zip(
        commands,
        ("assistant", "assistant", "summary", "summary"),
        (
            *(None, "/r/MOODPO/outputs/iter1/checkpoint-7"),
            *(None, "/r/MOODPO/outputs/summary/iter1/checkpoint-7"),
        ),
        (["helpful", "harmless", "humor"],) * 2 + (["summary", "faithful"],) * 2,
        strict=True,
    ):
        settings = read_settings(command)
        run = settings.run
        assert (run.sft_model_path, run.model_path) == ("org/model", model_path)
        assert (run.exp_type, run.reward_models) == (exp_type, rewards)
        assert run.csv_path in ("/d/prompts_train.csv", "/d/summary_prompts_train.csv")
        assert run.wandb_name.startswith("moodpo_")
        assert run.prompt_column == "prompt"
        assert str(settings.output_dir).startswith("MOODPO/outputs/")
        assert not settings.embedded
        args = config(settings)
        assert args.per_device_train_batch_size == 1
        assert args.gradient_accumulation_steps == 8
        assert (args.learning_rate, args.num_train_epochs) == (5e-7, 1.0)
        assert (args.logging_steps, args.save_steps, args.bf16) == (10, 500, True)


def test_method_defaults():
    settings = read_settings(USER)
    model, run = settings.model, settings.run
    assert (model.use_peft, model.lora_r, model.lora_alpha) == (True, 64, 128)
    assert (model.lora_dropout, model.lora_target_modules) == (0.05, "all-linear")
    assert model.dtype is None
    assert (run.model_path, run.exp_type, run.disable_wandb) == (None, "assistant", False)
    assert settings.output_dir == Path("outputs/assistant")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["q_proj"], ["q_proj"]),
        (["mlp.up_proj"], ["mlp.up_proj"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["all-linear"], "all-linear"),
        ([".*_proj"], ".*_proj"),
    ],
)
def test_one_module_is_a_name_not_a_pattern(given, kept):
    assert read_settings(["--lora_target_modules", *given]).model.lora_target_modules == kept


def test_a_task_changes_defaults_and_its_flags_change_them_again():
    args = config(read_settings([*USER, "--exp_type", "summary", "--max_new_tokens", "9"]))
    assert args.max_prompt_length == TASKS["summary"].defaults["max_prompt_length"]
    assert args.max_new_tokens == 9


def test_the_embedded_default_applies_without_model_data_and_rewards():
    settings = read_settings([])
    assert settings.embedded
    assert settings.run.reward_models == list(EMBEDDED["reward_models"])
    args = config(settings)
    for name in ("learning_rate", "max_steps", "max_new_tokens", "weight_format"):
        assert getattr(args, name) == EMBEDDED[name]
    changed = read_settings(["--max_steps", "1", "--lora_r", "2"])
    assert changed.embedded
    assert (config(changed).max_steps, changed.model.lora_r) == (1, 2)
    assert changed.model.lora_alpha == EMBEDDED["lora_alpha"]


@pytest.mark.parametrize("flag", [USER[0:2], USER[2:4], USER[4:]])
def test_naming_a_model_data_or_rewards_leaves_the_embedded_default(flag):
    settings = read_settings(flag)
    assert not settings.embedded
    assert settings.model.lora_r == 64


def test_file_and_command_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "sft_model_path: from_file\ncsv_path: p.csv\nreward_models: [a, b]\nbeta: 0.2\n"
        "learning_rate: 3e-6\ndisable_wandb: true\nbatch_size: 4\n"
    )
    settings = read_settings(["--config", str(path), "--sft_model_path", "typed", "--beta", "0.3"])
    assert settings.run.sft_model_path == "typed"
    assert settings.run.disable_wandb is True
    assert not settings.embedded
    args = config(settings)
    assert (args.beta, args.learning_rate, args.per_device_train_batch_size) == (0.3, 3e-6, 4)
    assert {"beta", "learning_rate", "sft_model_path"} <= settings.given


def test_unknown_keys_of_a_file_are_refused_with_its_name(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rat: 1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key 'learning_rat'.*learning_rate"):
        read_settings(["--config", str(path)])
    with pytest.raises(ConfigError, match="--config expects a YAML file"):
        read_settings(["--config"])


@pytest.mark.parametrize("spelling", ["--batch_size", "--batch-size"])
def test_batch_size_is_another_name(spelling):
    assert config(read_settings([*USER, spelling, "3"])).per_device_train_batch_size == 3
    same = [*USER, spelling, "3", "--per_device_train_batch_size", "3"]
    assert config(read_settings(same)).per_device_train_batch_size == 3
    # over the embedded default's own value too
    assert config(read_settings([spelling, "3"])).per_device_train_batch_size == 3


def test_batch_size_must_not_contradict_itself():
    with pytest.raises(ConfigError, match="two names of one setting"):
        read_settings([*USER, "--batch_size", "3", "--per_device_train_batch_size", "4"])


def test_values_for_the_chat_template_are_json_or_a_mapping(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("chat_template_kwargs:\n  enable_thinking: false\n  date_string: 1 Jan\n")
    args = config(read_settings([*USER, "--config", str(path)]))
    assert args.chat_template_kwargs == {"enable_thinking": False, "date_string": "1 Jan"}
    args = config(read_settings([*USER, "--chat_template_kwargs", '{"enable_thinking": false}']))
    assert args.make_conditioner(("a", "b")).chat_template_kwargs == {"enable_thinking": False}
    assert config(read_settings(USER)).make_conditioner(("a",)).chat_template_kwargs == {}


def test_what_the_user_gives_wins_over_what_is_computed():
    settings = read_settings([*USER, "--report_to", "tensorboard", "--run_name", "mine"])
    args = settings.training_config(use_cpu=True, report_to=["wandb"], run_name="ours")
    assert (args.report_to, args.run_name) == (["tensorboard"], "mine")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--csv_pth", "x"], "Unknown flag --csv_pth. Did you mean --csv_path"),
        (["--learning_rat", "1"], "Did you mean --learning_rate"),
        (["--model_name_or_path", "x"], "Unknown flag --model_name_or_path"),
        (["--exp_type", "story"], "invalid choice: 'story'"),
        (["--lora_r", "0"], "lora_r must be at least 1"),
        (["--lora_dropout", "1"], "lora_dropout must be at least 0 and below 1"),
        (["--load_in_4bit", "True", "--load_in_8bit", "True"], "8 bit and 4 bit"),
        (["--max_samples", "many"], "invalid int value"),
    ],
)
def test_refused_without_torch(flags, message):
    with pytest.raises(ConfigError) as refused:
        read_settings(flags)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beta", "-1"], "beta must be at least"),
        (["--temperature", "0"], "temperature must be at least"),
        (["--learning_rate", "fast"], "--learning_rate: invalid float value"),
        (["--loss_type", "l2"], "loss_type must be one of|invalid choice"),
        (["--bf16", "True", "--fp16", "True"], "bf16"),
        (["stray"], "Unexpected argument 'stray'"),
        (["--chat_template_kwargs", "{think: no}"], "Cannot read chat_template_kwargs '{think: no"),
        (["--chat_template_kwargs", '{"tokenize": true}'], "cannot set 'tokenize'"),
    ],
)
def test_refused_by_the_trainers_settings(flags, message):
    with pytest.raises(ConfigError, match=message):
        config(read_settings([*flags, *USER] if flags != ["stray"] else [*USER[:4], *flags]))


def test_reading_settings_imports_no_torch():
    code = (
        "import sys; from moodpo.cli.settings import read_settings\n"
        "read_settings([]); read_settings(['--learning_rate', '1e-3'])\n"
        "print([n for n in ('torch', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_has_every_flag_ours_first():
    from dataclasses import fields

    from moodpo.training.config import MOODPOConfig

    text = train_help()
    for name in ("wandb_name", "csv_path", "batch_size", "lora_r", "config", "sweep_weights"):
        assert f"  --{name} " in text
    for f in fields(MOODPOConfig):
        if f.init:
            assert f"  --{f.name} " in text, f.name
    rooms = ["run:", "data:", "model and LoRA:", "rewards:", "weights:", "rollout:", "loss:"]
    places = [text.index(f"\n{room}\n") for room in rooms]
    assert places == sorted(places)
    assert places[-1] < text.index("\ntrainer (transformers.TrainingArguments):\n")


def test_help_says_the_defaults_that_a_command_line_has(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = train_help().splitlines()

    def said(name: str) -> str:
        first = next(i for i, line in enumerate(lines) if line.startswith(f"  --{name} "))
        following = lines[first + 1 :]
        last = next(i for i, line in enumerate(following) if not line.startswith("      "))
        return " ".join(" ".join(following[:last]).split())

    settings = read_settings(["--csv_path", "prompts.csv"])
    computed = choose_trackers(settings)
    assert said("project").endswith(f"Default: {computed['project']}.")
    assert "Default: wandb where it is installed." in said("report_to")
    assert "Default: --wandb_name." in said("run_name")
    assert "Default: True where there is no accelerator." in said("use_cpu")
    assert "Default: False; embedded, True where hardware has it." in said("bf16")
    assert str(settings.output_dir) == "outputs/assistant"
    assert "--wandb_name or else --exp_type; outputs/default of the embedded" in said("output_dir")
    assert str(read_settings([]).output_dir) == "outputs/default"
