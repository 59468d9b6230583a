"""`moodpo export`: the merged model answers as base and adapter do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moodpo.cli.export import kept_share
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


@pytest.mark.parametrize(
    ("stored", "share"),
    [([1.0, -2.0], 1.0), ([0.0, 0.0], 0.0), ([1.0, 0.0], 0.2), ([9.0, 9.0], 0.0)],
)
def test_kept_share_by_hand(stored, share):
    change = torch.tensor([1.0, -2.0])
    assert kept_share(change, torch.tensor(stored)) == pytest.approx(share)


def test_no_change_is_kept():
    assert kept_share(torch.zeros(2), torch.zeros(2)) == 1.0


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=8), st.integers(0, 20))
def test_what_is_far_below_the_last_bit_is_lost(values, shift):
    weights = torch.tensor(values)
    change = weights * 2.0**-shift
    old, new = weights.bfloat16().float(), (weights.bfloat16().float() + change).bfloat16().float()
    share = kept_share(change, new - old)
    assert 0 <= share <= 1
    if shift >= 10:  # below half a unit in the last of bfloat16's 8 bits
        assert share == 0
    if shift == 0:
        assert share > 0.99
