"""`moodpo train` end to end on a tiny policy."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from documented_commands import documented_commands
from moodpo.files import hash_weights
from moodpo.manifest import RunManifest
from moodpo.recipes import TASKS
from moodpo.rewards.presets import PRESETS
from tiny_checkpoints import (
    build_tiny_bart_reward,
    build_tiny_distilbert_reward,
    build_tiny_gpt2_reward,
    install_in_hub_cache,
)
from tiny_policies import save_tiny_policy


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- what a run leaves behind ---


def test_a_run_leaves_policy_manifest_card_and_checkpoints(trained):
    names = {p.name for p in trained.iterdir()}
    assert names >= {
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "moodpo.json"),
        *("trainer_state.json", "README.md", "metrics.jsonl", "checkpoint-1", "checkpoint-2"),
    }
    manifest = RunManifest.load(trained)
    assert manifest.objectives == ("brevity", "detail")
    assert manifest.conditioning["phrases"] == {"brevity": "brief", "detail": "detailed"}
    assert (manifest.lineage, manifest.task) == ((), "assistant")
    assert manifest.training["steps"] == 2
    assert json.loads((trained / "adapter_config.json").read_text())["r"] == 4
    assert [row["step"] for row in rows(trained / "metrics.jsonl")][:2] == [1, 2]


def test_it_says_what_it_uses_and_what_to_type_next(run, train_flags, tmp_path, policy, prompts):
    outcome = run("train", *train_flags, "--max_steps", 1, "--output_dir", tmp_path / "a b")
    assert outcome.code == 0, outcome.err
    assert f"prompts     {prompts}: kept 6 of 6 prompts" in outcome.err
    assert f"policy      {policy}, LoRA of rank 4" in outcome.err
    assert "objectives  brevity, detail" in outcome.err
    assert f"moodpo generate '{tmp_path}/a b' --weights brevity=0.7,detail=0.3" in outcome.out
    assert "moodpo evaluate" in outcome.out


def test_only_the_main_process_speaks(run, train_flags, tmp_path, monkeypatch):
    # Commands are imported on use: imported under the patch, they would keep it for good.
    for module in ("train", "after", "outputs"):
        importlib.import_module(f"moodpo.cli.{module}")
    monkeypatch.setattr("moodpo.cli.console.is_main_process", lambda: False)
    outcome = run("train", *train_flags, "--max_steps", 1, "--output_dir", tmp_path)
    assert outcome.code == 0
    assert "Done" not in outcome.out
    assert "prompts" not in outcome.err


# --- iterations ---


def second(run, trained, train_flags, folder, *flags):
    return run("train", *train_flags, "--model_path", trained, "--output_dir", folder, *flags)


def test_a_second_iteration_starts_from_the_first(run, trained, train_flags, tmp_path):
    folder = tmp_path / "iter2"
    outcome = second(run, trained / "checkpoint-2", train_flags, folder, "--learning_rate", 0)
    assert outcome.code == 0, outcome.err
    # With a learning rate of 0 nothing moves: the weights are the first iteration's.
    first = load_file(trained / "checkpoint-2" / "adapter_model.safetensors")
    ours = load_file(folder / "adapter_model.safetensors")
    assert first.keys() == ours.keys()
    assert all((first[name] == ours[name]).all() for name in first)
    (entry,) = RunManifest.load(folder).lineage
    assert entry == {
        "path": str(trained / "checkpoint-2"),
        "sha256": hash_weights(trained / "checkpoint-2"),
        "steps": 2,
        "output_dir": str(trained),
    }
    third = tmp_path / "iter3"
    assert second(run, folder, train_flags, third, "--max_steps", 1).code == 0
    assert [e["path"] for e in RunManifest.load(third).lineage] == [entry["path"], str(folder)]


@pytest.fixture
def as_embedded(policy, tmp_path, monkeypatch):
    """The tiny policy stands where the embedded one is converted to."""
    folder = tmp_path / "cache" / "smollm2-135m-instruct-0123456789ab"
    shutil.copytree(policy, folder)
    (folder / "conversion.json").write_text("{}")
    monkeypatch.setattr("moodpo.models.embedded.embedded_policy_path", lambda: folder)
    return folder


def test_the_embedded_model_goes_by_its_hub_id_and_is_found_again(
    run, train_flags, prompts, as_embedded, tmp_path
):
    flags = [*train_flags, "--sft_model_path", "embedded", "--max_steps", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("train", *flags, "--output_dir", first).code == 0
    manifest = RunManifest.load(first)
    assert manifest.base_model["path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert manifest.reference["path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for name in ("moodpo.json", "adapter_config.json", "README.md"):
        text = (first / name).read_text()
        assert "HuggingFaceTB/SmolLM2-135M-Instruct" in text
        assert str(as_embedded) not in text
    again = run("train", *flags, "--output_dir", second, "--model_path", first)
    assert again.code == 0, again.err
    assert "was trained on" not in again.err
    asked = run("generate", second, "--weights", "brevity=1", "Hello", "--max_new_tokens", "4")
    assert asked.code == 0, asked.err
    swept = f"--csv_path {prompts} --weights_per_objective 2 --max_new_tokens 4".split()
    assert run("evaluate", second, *swept).code == 0
    assert run("export", second, "--output_dir", tmp_path / "merged").code == 0


def test_relative_paths_are_found_from_anywhere(run, train_flags, policy, tmp_path, monkeypatch):
    shutil.copytree(policy, tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    flags = [*train_flags, "--sft_model_path", "models/tiny", "--max_steps", "1"]
    assert run("train", *flags, "--output_dir", "one").code == 0
    assert run("train", *flags, "--output_dir", "two", "--model_path", "one").code == 0
    monkeypatch.chdir("/")
    manifest = RunManifest.load(tmp_path / "two")
    expected = {"path": str(tmp_path / "models/tiny"), "start": str(tmp_path / "one")}
    assert manifest.base_model == expected
    assert manifest.lineage[0]["path"] == str(tmp_path / "one")
    config = json.loads((tmp_path / "two" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == expected["path"]
    outcome = run("generate", tmp_path / "two", "--weights", "brevity=1", "Hello")
    assert outcome.code == 0, outcome.err
    (tmp_path / "models" / "tiny").rename(tmp_path / "moved")
    for command in (["generate", "--weights", "brevity=1", "Hi"], ["export", "--output_dir", "x"]):
        outcome = run(command[0], tmp_path / "two", *command[1:])
        assert outcome.code == 2
        assert expected["path"] in outcome.err
        assert "--base_model" in outcome.err


def test_a_folder_with_fewer_layers_than_it_says_is_refused(run, train_flags, policy, tmp_path):
    shutil.copytree(policy, tmp_path / "short")
    path = tmp_path / "short" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 3}))
    flags = [*train_flags, "--sft_model_path", tmp_path / "short", "--output_dir", tmp_path / "o"]
    outcome = run("train", *flags)
    assert outcome.code == 2
    assert "9 weights are missing, such as model.layers.2" in outcome.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reward_models", "detail", "brevity"], "the order of objectives"),
        (["--reward_models", "brevity", "plainness"], "trained with objectives"),
        (["--weight_format", "verbal"], "trained with weight_format = 'grouped'"),
        (["--lora_r", "8"], "has 4 and keeps it"),
        (["--use_peft", "False"], "is an adapter, and --use_peft False"),
    ],
)
def test_an_iteration_that_reads_weights_differently_is_refused(
    run, trained, train_flags, tmp_path, flags, message
):
    outcome = second(run, trained, train_flags, tmp_path / "iter2", *flags)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "iter2").exists()


def test_values_for_the_chat_template_are_remembered(run, train_flags, prompts, tmp_path):
    from moodpo.policy import SteerablePolicy
    from tiny_policies import CHATML, tiny_model, tiny_tokenizer

    thinking = CHATML.replace("{% if add", "{% if quiet %}</think>{% endif %}{% if add")
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer({"default": thinking, "rag": "x"}).save_pretrained(tmp_path / "model")
    quiet = ["--chat_template_kwargs", '{"quiet": true}']
    flags = [*train_flags, "--sft_model_path", tmp_path / "model", "--max_steps", 1]
    first = tmp_path / "first"
    assert run("train", *flags, *quiet, "--output_dir", first).code == 0
    conditioning = RunManifest.load(first).conditioning
    assert conditioning["chat_template_kwargs"] == {"quiet": True}
    policy = SteerablePolicy.from_pretrained(first)
    ids = policy.conditioner.encode(policy.tokenizer, "Hi", [0.5, 0.5])
    assert policy.tokenizer.decode(ids).endswith("</think><|im_start|>assistant\n")
    # the next iteration must ask alike, and whoever asks later does
    outcome = second(run, first, flags, tmp_path / "iter2")
    assert outcome.code == 2
    assert "trained with chat_template_kwargs = {'quiet': True}" in outcome.err
    assert second(run, first, [*flags, *quiet], tmp_path / "iter2").code == 0
    asking = ["generate", first, "--weights", "brevity=1", "--max_new_tokens", 3, "Hi"]
    assert run(*asking).code == 0
    assert "Leave --chat_template_kwargs out" in run(*asking, *quiet).err
    untrained = ["generate", tmp_path / "model", *asking[2:]]
    assert run(*untrained, *quiet).code == 0
    assert "must be a JSON object" in run(*untrained, "--chat_template_kwargs", "3").err


def test_an_adapter_on_another_model_is_refused(run, trained, train_flags, tmp_path):
    from tiny_policies import tiny_model, tiny_tokenizer

    other = tmp_path / "other"
    tiny_model(hidden_size=64).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    flags = ["--sft_model_path", other]
    outcome = second(run, trained, train_flags, tmp_path / "iter2", *flags)
    assert outcome.code == 2
    assert f"was trained on {RunManifest.load(trained).base_model['path']}" in outcome.err
    assert "cannot be loaded" in outcome.err
    assert "size mismatch" in outcome.err


def changed_adapter(source, folder, *, without=None, **settings):
    """A copy of an adapter with other settings, or without some of its tensors."""
    folder.mkdir()
    config = json.loads((source / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    weights = load_file(source / "adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if not without or without not in name}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_alpha": 64}, "lora_alpha: it has 64, the policy's has 128"),
        ({"use_rslora": True}, "use_rslora: it has True"),
        ({"without": "q_proj"}, "it lacks"),
        ({}, "Done"),
    ],
)
def test_a_reference_on_disk_computes_as_the_policy_does(
    run, trained, train_flags, tmp_path, change, said
):
    reference = changed_adapter(trained, tmp_path / "reference", **change)
    flags = ["--reference", reference, "--max_steps", "1", "--output_dir", tmp_path / "out"]
    outcome = run("train", *train_flags, *flags)
    assert outcome.code == (2 if change else 0)
    assert said in outcome.err + outcome.out


def test_an_adapter_with_missing_tensors_is_no_start(run, trained, train_flags, tmp_path):
    start = changed_adapter(trained, tmp_path / "start", without="q_proj")
    outcome = second(run, start, train_flags, tmp_path / "iter2")
    assert outcome.code == 2
    assert "4 weights are missing" in outcome.err


def test_dropout_that_has_no_effect_is_said(run, train_flags, tmp_path):
    flags = ["--lora_dropout", "0.1", "--max_steps", "1", "--output_dir", tmp_path]
    outcome = run("train", *train_flags, *flags)
    assert outcome.code == 0
    assert "--lora_dropout 0.1 has no effect" in outcome.err


def test_full_training_and_its_second_iteration(run, train_flags, policy, tmp_path):
    first, then = tmp_path / "1", tmp_path / "2"
    full = [*train_flags, "--use_peft", "False", "--max_steps", 1]
    assert run("train", *full, "--output_dir", first).code == 0
    assert (first / "model.safetensors").is_file()
    assert not (first / "adapter_config.json").exists()
    outcome = run("train", *full, "--output_dir", then, "--model_path", first)
    assert outcome.code == 0, outcome.err
    manifest = RunManifest.load(then)
    assert manifest.base_model == {"path": str(policy), "start": str(first)}
    assert manifest.reference["path"] == str(policy)  # the SFT model, not the first iteration


def test_an_adapter_on_an_earlier_whole_model(run, train_flags, policy, tmp_path):
    first, then = tmp_path / "1", tmp_path / "2"
    flags = [*train_flags, "--max_steps", 1]
    assert run("train", *flags, "--use_peft", "False", "--output_dir", first).code == 0
    outcome = run("train", *flags, "--output_dir", then, "--model_path", first)
    assert outcome.code == 0, outcome.err
    manifest = RunManifest.load(then)
    assert manifest.base_model["path"] == str(first)  # what the adapter lies on
    assert manifest.reference == {"kind": "model", "path": str(policy)}


# --- resuming, overwriting, interrupting ---


def test_resuming_ends_where_an_uninterrupted_run_does(run, trained, train_flags, tmp_path):
    folder = tmp_path / "resumed"
    flags = [*train_flags, "--output_dir", folder]
    # The scheduler must be told the whole length, so the run is cut by losing its last checkpoint.
    assert run("train", *flags).code == 0
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    outcome = run("train", *flags, "--resume_from_checkpoint", "True")
    assert outcome.code == 0, outcome.err
    assert "checkpoint-2 lacks optimizer.pt" in outcome.err
    ours, theirs = (load_file(f / "adapter_model.safetensors") for f in (folder, trained))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    first = load_file(trained / "checkpoint-1" / "adapter_model.safetensors")
    assert any((first[name] != theirs[name]).any() for name in theirs)  # it did train
    # Killed after its last step: what was not written yet is written, and nothing trained again.
    for name in ("adapter_model.safetensors", "moodpo.json"):
        (folder / name).unlink()
    outcome = run("train", *flags, "--resume_from_checkpoint", "True")
    assert "Done: 2 steps" in outcome.out, outcome.err
    ours = load_file(folder / "adapter_model.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert RunManifest.load(folder).training["steps"] == 2
    assert not (folder / "checkpoint-3").exists()


def test_a_run_is_not_overwritten_by_accident(run, trained, train_flags, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    outcome = run("train", *train_flags, "--output_dir", folder)
    assert outcome.code == 2
    assert "--overwrite True" in outcome.err
    flags = ["--output_dir", folder, "--overwrite", "True", "--max_steps", 1]
    assert run("train", *train_flags, *flags).code == 0
    assert not (folder / "checkpoint-2").exists()
    assert [row["step"] for row in rows(folder / "metrics.jsonl")] == [1, 1]


INTERRUPTING = """
import os, signal, sys
from moodpo.cli import main
from moodpo.training.trainer import MOODPOTrainer

original = MOODPOTrainer.training_step
def step(self, *args, **kwargs):
    if self.state.global_step == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return original(self, *args, **kwargs)
MOODPOTrainer.training_step = step
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupted_run_saves_and_can_go_on(run, train_flags, tmp_path):
    flags = ["train", *train_flags, "--output_dir", str(tmp_path), "--max_steps", "4"]
    flags += ["--save_steps", "100"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTING, *flags],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted after step 2 of 4" in done.stderr
    assert "--resume_from_checkpoint True" in done.stderr
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").is_file()
    assert run(*flags, "--resume_from_checkpoint", "True").code == 0
    assert RunManifest.load(tmp_path).training["steps"] == 4


# --- bad settings that need torch to be found, but no model ---


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beta", "0"], "beta must be at least"),
        (["--concentration", "1", "1", "1"], "3 values but there are 2 objectives"),
        (["--max_prompt_length", "2048"], "has 2048 positions"),
        (["--eval_strategy", "steps"], "Pass --eval_csv_path"),
        (["--reference", "best"], "neither base nor initial"),
        (["--instruction_template", "none"], "no field for"),
        (["--weight_format", "roman"], "--weight_format: invalid choice: 'roman'"),
        (["--max_prompt_length", "20"], "are longer than max_prompt_length = 20"),
        (["--load_best_model_at_end", "True"], "save and eval strategy"),
        (["--do_train", "False"], "do_train=False cannot work here"),
        (["--do_eval", "True"], "Pass --eval_strategy epoch"),
        (["--do_predict", "True"], "Use `moodpo generate`"),
        (["--label_smoothing_factor", "0.3"], "Use label_smoothing,"),
        (["--train_sampling_strategy", "group_by_length"], "Use random or sequential"),
        (["--include_num_input_tokens_seen", "all"], "include_num_input_tokens_seen"),
        (["--neftune_noise_alpha", "-1"], "neftune_noise_alpha must be at least 0"),
        (["--torch_compile", "True"], "torch_compile=True cannot work here"),
        (["--fp16", "True"], "fp16 needs a GPU"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--temperature", "inf"], "temperature must be at least 0.0001 and finite; got inf"),
        (
            ["--dataloader_drop_last", "True", "--per_device_train_batch_size", "7"],
            "dataloader_drop_last leaves no batch: there are 6 prompts",
        ),
        (["--resume_from_checkpoint", "nowhere"], "nowhere does not exist"),
        (["--reward_models", "brevity", "tiny_rewards:matches"], "'matches' needs solution"),
        (["--learning_rate", "inf"], "learning_rate must be at least 0 and at most 100; got inf"),
        (["--weight_decay=inf"], "weight_decay must be at least 0 and finite; got inf"),
        (["--max_grad_norm", "-1"], "max_grad_norm must be at least 0; got -1"),
        (["--save_steps", "0"], "save_steps must be"),
        (["--save_total_limit", "-1"], "save_total_limit must be at least 1; got -1"),
        (["--num_train_epochs", "0"], "num_train_epochs must be"),
        (["--adam_epsilon", "nan"], "adam_epsilon must be at least 0; got nan"),
        (["--lora_dropout", "nan"], "lora_dropout must be at least 0"),
    ],
)
def test_refused_before_a_model_loads(run, train_flags, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr("moodpo.cli.models.load_policy", pytest.fail)
    outcome = run("train", *train_flags, "--output_dir", tmp_path / "new", *flags)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("module", "flags", "code", "message"),
    [
        ("import sys; sys.exit('bye')", [], 2, "Cannot import the reward"),
        (
            "def score(completions, **_): raise SystemExit(0)",
            [],
            1,
            "Reward 'odd' failed while scoring: SystemExit: 0",
        ),
        (
            "def score(completions, **_): return [None] * len(completions)",
            ["--reward_normalization", "running"],
            1,
            "error: Not a single pair could be trained on in 2 steps",
        ),
        (
            "def score(completions, **_): return [2.0] * len(completions)",
            [],
            0,
            "warning: The reward odd gave every answer the same score, 2",
        ),
    ],
    ids=["import exits", "scoring exits", "no scores", "constant"],
)
def test_rewards_that_teach_nothing(
    run, train_flags, tmp_path, monkeypatch, module, flags, code, message
):
    (tmp_path / "odd_rewards.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_rewards", raising=False)
    own = ("detail=tiny_rewards:variety", "odd=odd_rewards:score")
    flags = [*train_flags, *flags, "--output_dir", tmp_path / "new", "--reward_models", *own]
    outcome = run("train", *flags)
    assert outcome.code == code, outcome.err
    assert message in outcome.err
    assert ("Done" in outcome.out) == (code == 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_target_modules", "c_attn"], "--lora_target_modules"),
        (["--lora_layers_to_transform", "0"], "needs module names"),
    ],
)
def test_adapters_that_the_model_has_no_place_for(run, train_flags, tmp_path, flags, message):
    outcome = run("train", *train_flags, "--output_dir", tmp_path / "new", *flags)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_model_that_does_not_load_is_bad_input(run, train_flags, tmp_path):
    broken = save_tiny_policy(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    flags = ["--sft_model_path", broken, "--output_dir", tmp_path / "out"]
    outcome = run("train", *train_flags, *flags)
    assert outcome.code == 2
    assert f"{broken} cannot be loaded" in outcome.err


# --- the embedded default ---


def test_no_arguments_train_sweep_and_report(run, policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moodpo.models.embedded.embedded_policy_path", lambda: policy)
    small = """--max_steps 1 --per_device_train_batch_size 4 --max_new_tokens 6 --sweep_weights 3
        --sweep_prompts 5 --calibration_prompts 4 --disable_wandb True --disable_tqdm True
        --lora_layers_to_transform 1"""
    outcome = run("train", *small.split())
    assert outcome.code == 0, outcome.err
    folder = Path("outputs/default")
    for name in ("adapter_model.safetensors", "results.json", "front.png", "report.html"):
        assert (folder / name).is_file()
    results = json.loads((folder / "results.json").read_text())
    assert len(results["weights"]) == 3
    assert len(results["prompts"]) == 5
    assert results["baseline"]["name"] == "base model"
    assert "Mean rewards before → after" in outcome.out
    assert "What the weights do" in outcome.out
    assert "open outputs/default/report.html" in outcome.out


def test_a_short_adapter_run_leaves_the_base_as_the_baseline(run, policy, tmp_path, train_flags):
    """With a learning rate of 0 before and after are the same answers."""
    flags = ["--learning_rate", 0, "--max_steps", 1, "--output_dir", tmp_path]
    flags += ["--eval_csv_path", "embedded", "--sweep_weights", 2, "--sweep_prompts", 3]
    assert run("train", *train_flags, *flags).code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["completions"] == results["baseline"]["completions"]


# --- the documented commands ---

LAUNCH = """
import json, sys
from moodpo.cli import main
print(json.dumps([main(["train", *argv]) for argv in json.load(sys.stdin)]))
"""


@pytest.fixture
def documented(tmp_path):
    """A Hub cache with tiny models under the presets' ids, data files, and the environment."""
    hub = tmp_path / "hf" / "hub"
    builders = {
        "helpful": build_tiny_gpt2_reward,
        "harmless": build_tiny_gpt2_reward,
        "humor": build_tiny_distilbert_reward,
        "summary": build_tiny_gpt2_reward,
        "faithful": build_tiny_bart_reward,
    }
    for seed, (name, build) in enumerate(builders.items()):
        checkpoint = build(tmp_path / "rm" / name, seed=seed)
        install_in_hub_cache(checkpoint, PRESETS[name].checkpoint, hub)
    install_in_hub_cache(save_tiny_policy(tmp_path / "sft"), "org/sft", hub)
    posts = [f"I lost my {word} yesterday and I am sad." for word in ("key", "cat", "hat", "pen")]
    for file in ("prompts_train.csv", "summary_prompts_train.csv"):
        (tmp_path / file).write_text("\n".join(["prompt", *posts * 2]) + "\n")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("WANDB", "RANK"))}
    environment |= {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    return tmp_path, environment


def check_documented_runs(root, wandb):
    outputs = root / "MOODPO" / "outputs"
    assistant = ("helpful", "harmless", "humor")
    expected = {
        "iter1": (assistant, "assistant", 0),
        "iter2": (assistant, "assistant", 1),
        "summary/iter1": (("summary", "faithful"), "summary", 0),
        "summary/iter2": (("summary", "faithful"), "summary", 1),
    }
    for name, (objectives, task, earlier) in expected.items():
        manifest = RunManifest.load(outputs / name)
        assert (manifest.objectives, manifest.task) == (objectives, task)
        assert len(manifest.lineage) == earlier
        assert [r["kind"] for r in manifest.rewards] == ["preset"] * len(objectives)
        assert manifest.base_model["path"] == "org/sft"
        assert manifest.training["gradient_accumulation_steps"] == 8
        assert manifest.conditioning["prompt_template"] == TASKS[task].prompt_template
        assert (outputs / name / "wandb").is_dir() == wandb
    (entry,) = RunManifest.load(outputs / "summary/iter2").lineage
    assert entry["sha256"] == hash_weights(outputs / "summary/iter1/checkpoint-1")


def test_all_four_documented_commands(documented):
    root, environment = documented
    commands = documented_commands(sft="org/sft", data=root, root=root, step=1)
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH],
        input=json.dumps([[*command, "--disable_wandb", "True"] for command in commands]),
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 0, 0], done.stderr[-3000:]
    check_documented_runs(root, wandb=False)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "accelerate"])
def test_documented_commands_under_their_launchers(documented, launcher):
    root, environment = documented
    environment["WANDB_MODE"] = "offline"
    module = {
        "python": [sys.executable, "-m", "moodpo", "train"],
        "accelerate": [
            *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"),
            *("--cpu", "-m", "moodpo", "train"),
        ],
    }[launcher]
    for command in documented_commands(sft="org/sft", data=root, root=root, step=1):
        done = subprocess.run(
            [*module, *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    check_documented_runs(root, wandb=True)
    runs = list((root / "MOODPO/outputs/iter1/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    assert b"moodpo_iter1" in runs[0].read_bytes()


@pytest.mark.parametrize("has", [True, False])
def test_the_embedded_default_computes_in_what_the_machine_has(monkeypatch, has):
    import torch

    from moodpo.cli.settings import read_settings
    from moodpo.cli.train import _training_config

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: has)
    settings = ["--disable_wandb", "True"]
    assert _training_config(read_settings(settings)).bf16 is has
    asked = [*settings, "--bf16", "False"]
    assert _training_config(read_settings(asked)).bf16 is False
