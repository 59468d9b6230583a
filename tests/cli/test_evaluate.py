"""`moodpo evaluate` end to end, and what it refuses before loading anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moodpo.cli.evaluate import _folder, _parser, parse_thresholds
from moodpo.errors import ConfigError


@pytest.fixture
def flags(prompts):
    return ("--csv_path", prompts, "--weights_per_objective", 3, "--max_new_tokens", 6)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_it_writes_results_front_and_report(run, trained, flags, tmp_path):
    outcome = run("evaluate", trained, *flags, "--num_prompts", 4, "--output_dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "front.png", "report.html"}
    found = results(tmp_path)
    assert found["objectives"] == ["brevity", "detail"]
    assert found["weights"] == [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    # four of six, evenly spread
    assert found["prompts"] == [
        f"Tell me about {word}." for word in ("tea", "snow", "chess", "rain")
    ]
    assert found["policy"]["path"] == str(trained)
    assert found["baseline"]["name"] == "base model"
    assert found["sampling"]["max_new_tokens"] == 6
    assert "What the weights do" in outcome.out
    assert str(tmp_path / "report.html") in outcome.out


def test_the_default_folder_is_beside_the_policy(run, trained, flags):
    assert run("evaluate", trained, *flags, "--num_prompts", 1).code == 0
    assert (trained / "evaluation" / "results.json").is_file()


def test_nothing_is_written_into_a_model_that_is_not_ours(policy, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(policy)
    elsewhere = Path("outputs") / policy.name / "evaluation"
    for name, expected in {
        str(policy): elsewhere,
        ".": elsewhere,
        "org/name": Path("outputs/name/evaluation"),
        str(trained): trained / "evaluation",
    }.items():
        assert _folder(_parser().read([name])) == expected
    given = _parser().read([str(policy), "--output_dir", str(tmp_path)])
    assert _folder(given) == tmp_path


def test_weights_file_held_out_rewards_and_no_baseline(run, trained, flags, tmp_path):
    weights = tmp_path / "w.csv"
    weights.write_text("brevity,detail\n0,1\n")
    more = ["--held_out_reward_models", "positivity", "--baseline", "none"]
    more += ["--num_prompts", 2, "--output_dir", tmp_path]
    outcome = run("evaluate", trained, *flags[:2], *flags[4:], "--weights", weights, *more)
    assert outcome.code == 0, outcome.err
    found = results(tmp_path)
    assert found["weights"] == [[0.0, 1.0]]
    assert found["held_out"]["names"] == ["positivity"]
    assert found["baseline"] is None


def test_a_plain_model_with_named_rewards_and_a_baseline(run, policy, trained, flags, tmp_path):
    more = ["--reward_models", "a=tiny_rewards:letters", "b=tiny_rewards:variety"]
    more += ["--baseline", policy, "--num_prompts", 2, "--output_dir", tmp_path]
    outcome = run("evaluate", policy, *flags, *more)
    assert outcome.code == 0, outcome.err
    found = results(tmp_path)
    assert found["objectives"] == ["a", "b"]
    assert found["completions"] == found["baseline"]["completions"]


def test_an_interrupted_evaluation_goes_on(run, trained, flags, tmp_path, monkeypatch):
    from moodpo.policy import SteerablePolicy

    calls = []
    original = SteerablePolicy.sample

    def sample(self, prompts, *args, **kwargs):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, prompts, *args, **kwargs)

    monkeypatch.setattr(SteerablePolicy, "sample", sample)
    command = ["evaluate", trained, *flags, "--output_dir", tmp_path]
    assert run(*command).code == 130  # after the policy's chunk, within the baseline's
    assert (tmp_path / "sweep.jsonl").is_file()
    assert run(*command).code == 0
    assert calls == [18, 18, 18]  # the policy's answers were not sampled again
    assert not (tmp_path / "sweep.jsonl").exists()


def test_a_missed_threshold_fails(run, trained, flags, tmp_path):
    command = ["evaluate", trained, *flags, "--num_prompts", 2, "--output_dir", tmp_path]
    assert run(*command, "--fail-under", "steerability=-1").code == 0
    outcome = run(*command, "--fail-under", "steerability=-1", "steerability/detail=1.5")
    assert outcome.code == 1
    assert "steerability/detail is" in outcome.err
    assert "below the required 1.5" in outcome.err
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--fail-under", "steerability"], "write NAME=NUMBER"),
        (["--fail-under", "speed=1"], "Unknown measure 'speed'"),
        (["--fail-under", "sparsity=1"], "Less is better"),
        (["--reward_models", "brevity", "humor"], "was trained for brevity, detail"),
        (["--reward_models", "brevity"], "2 or more rewards"),
        (["--csv_path", "nope.csv"], "nope.csv"),
        (["--prompt_column", "text"], "no column 'text'"),
        (["--weights", "nope.csv"], "not allowed with|nope.csv"),
        (["--held_out_reward_models", "nope"], "Unknown reward 'nope'"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--num_prompts", "0"], "--num_prompts at least 1"),
        (["--reward_batch_size", "0"], "reward_batch_size must be at least 1; got 0"),
        (["--top_p", "2"], "top_p must be above 0"),
        (["--held_out_reward_models", "tiny_rewards:matches"], "'matches' needs solution"),
    ],
)
def test_refused_before_a_model_loads(run, trained, flags, monkeypatch, more, message):
    monkeypatch.setattr("moodpo.cli.evaluate.load_policy", pytest.fail)
    outcome = run("evaluate", trained, *flags, *more)
    assert outcome.code == 2
    assert any(part in outcome.err for part in message.split("|"))


def test_a_plain_model_needs_rewards(run, policy, flags):
    assert "Pass --reward_models" in run("evaluate", policy, *flags).err


def test_thresholds():
    assert parse_thresholds(["a=0.5", "b = -1"]) == {"a": 0.5, "b": -1.0}
    with pytest.raises(ConfigError, match=r"steerability=0\.5"):
        parse_thresholds(["a"])


def test_a_saved_baseline_is_a_policy_like_any_other(run, trained, policy, flags, tmp_path):
    from transformers import AutoModelForCausalLM

    from moodpo.baselines import PromptedPolicy
    from moodpo.conditioning.instruction import Conditioner
    from moodpo.generation.base import SamplingConfig
    from moodpo.manifest import RunManifest
    from tiny_policies import tiny_tokenizer

    manifest = RunManifest.load(trained)
    PromptedPolicy.from_model(
        AutoModelForCausalLM.from_pretrained(policy),
        tiny_tokenizer(),
        Conditioner.from_dict(manifest.conditioning),
        sampling=SamplingConfig(max_new_tokens=6),
        base_model=str(policy),
        rewards=manifest.rewards,
    ).save(tmp_path / "prompting")
    for name in (tmp_path / "prompting", trained):
        outcome = run(
            "evaluate", name, *flags, "--num_prompts", 4, "--output_dir", tmp_path / name.name
        )
        assert outcome.code == 0, outcome.err
    found = results(tmp_path / "prompting")
    # Prompting alone is the base model: the same prompts, weights and seeds give the same answers.
    assert found["completions"] == found["baseline"]["completions"]
    assert found["completions"] == results(tmp_path / trained.name)["baseline"]["completions"]
    folders = [tmp_path / "prompting" / "results.json", tmp_path / trained.name / "results.json"]
    outcome = run("compare", *folders, "--output_dir", tmp_path / "both")
    assert outcome.code == 0, outcome.err
