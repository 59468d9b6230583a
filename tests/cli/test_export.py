"""`moodpo export`: the merged model answers as base and adapter do."""

from __future__ import annotations

import torch

from moodpo.manifest import RunManifest
from moodpo.policy import SteerablePolicy

PROMPTS = ["Hello", "Tell me more."]


def test_the_merged_model_answers_alike(run, trained, tmp_path):
    folder = tmp_path / "merged"
    outcome = run("export", trained, "--output_dir", folder)
    assert outcome.code == 0, outcome.err
    assert not (folder / "adapter_config.json").exists()
    manifest = RunManifest.load(folder)
    assert manifest.objectives == ("brevity", "detail")
    assert manifest.training["peft"] is False
    ours, theirs = (SteerablePolicy.from_pretrained(p) for p in (folder, trained))
    weights = {"brevity": 1.0}
    assert ours.generate(PROMPTS, weights) == theirs.generate(PROMPTS, weights)
    again = run("export", folder, "--output_dir", tmp_path / "twice")
    assert again.code == 2
    assert "nothing to merge" in again.err


def test_half_precision_says_what_is_lost(run, trained, tmp_path):
    outcome = run("export", trained, "--output_dir", tmp_path / "half", "--dtype", "bfloat16")
    assert outcome.code == 0, outcome.err
    assert "of the adapter's change survives in bfloat16" in outcome.err
    model = SteerablePolicy.from_pretrained(tmp_path / "half", dtype="bfloat16").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_overflows_in_half_precision_is_not_written(run, trained, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(trained, tmp_path / "loud")
    file = tmp_path / "loud" / "adapter_model.safetensors"
    weights = {name: value * 1e6 for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    flags = ["--output_dir", tmp_path / "half", "--dtype", "float16"]
    outcome = run("export", tmp_path / "loud", *flags)
    assert outcome.code == 1
    assert "NaN or infinite" in outcome.err
    assert not (tmp_path / "half").exists()


def test_an_occupied_folder_is_refused(run, trained):
    outcome = run("export", trained, "--output_dir", trained)
    assert outcome.code == 2
    assert "is not empty" in outcome.err
