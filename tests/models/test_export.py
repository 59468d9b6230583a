"""Exported from Python; the command is in tests/cli/test_export.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moodpo.errors import DivergenceError
from moodpo.models.export import export_merged, kept_share
from moodpo.models.find import find_policy
from moodpo.policy import SteerablePolicy
from tiny_policies import save_tiny_policy
from tiny_trainers import make_trainer


@pytest.fixture
def trained(tmp_path):
    sft = str(save_tiny_policy(tmp_path / "sft"))
    trainer = make_trainer(tmp_path / "run", lora=True, base=sft, max_steps=2)
    trainer.train()
    trainer.save_model()
    return tmp_path / "run"


def test_a_merged_folder_answers_as_the_policy(trained, tmp_path):
    folder = tmp_path / "merged"
    assert export_merged(find_policy(trained), folder) == 1.0
    ours, theirs = (SteerablePolicy.from_pretrained(p) for p in (folder, trained))
    assert not (folder / "adapter_config.json").exists()
    assert ours.generate(["Hi"], {"vowels": 1.0}) == theirs.generate(["Hi"], {"vowels": 1.0})


def test_half_precision_says_how_much_is_left(trained, tmp_path):
    share = export_merged(find_policy(trained), tmp_path / "half", dtype="bfloat16")
    assert 0 < share < 1


def test_what_is_not_finite_is_not_written(trained, tmp_path, monkeypatch):
    def poisoned(model):
        merged = model.merge_and_unload()
        next(merged.parameters()).data[0] = float("inf")
        return merged

    monkeypatch.setattr("moodpo.models.export.merge_adapter", poisoned)
    with pytest.raises(DivergenceError):
        export_merged(find_policy(trained), tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


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
