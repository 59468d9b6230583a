"""Sweeps of a run, while it trains."""

import json

import pytest

from moodpo.manifest import RunManifest


def test_evaluation_sweeps_weights_and_keeps_the_best_checkpoint(
    run, train_flags, prompts, tmp_path
):
    flags = f"""--output_dir {tmp_path} --eval_csv_path {prompts}
        --eval_strategy steps --eval_steps 1
        --save_strategy steps --save_steps 1 --load_best_model_at_end True --sweep_prompts 4
        --metric_for_best_model eval_hypervolume --per_device_eval_batch_size 4""".split()
    outcome = run("train", *train_flags, *flags)
    assert outcome.code == 0, outcome.err
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    evaluations = [entry for entry in state["log_history"] if "eval_hypervolume" in entry]
    assert len(evaluations) == 2
    for entry in evaluations:
        assert entry["eval_hypervolume"] >= 0
        assert -1 <= entry["eval_steerability"] <= 1
        both = [entry[f"eval_steerability/{n}"] for n in RunManifest.load(tmp_path).objectives]
        assert entry["eval_steerability"] == pytest.approx(sum(both) / 2)
    best = max(evaluations, key=lambda entry: entry["eval_hypervolume"])
    assert state["best_metric"] == best["eval_hypervolume"]
