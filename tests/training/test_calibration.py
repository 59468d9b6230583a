from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moodpo.training.calibration import calibration_batch
from moodpo.training.parallel import Processes
from tiny_trainers import PROMPTS, make_trainer

ROWS = [{"prompt": prompt, "place": i} for i, prompt in enumerate(PROMPTS)]


def batch(count, world=1, index=0, seed=3):
    args = SimpleNamespace(seed=seed, calibration_prompts=count)
    return calibration_batch(ROWS, args, Processes(None, world, index, torch.device("cpu")))


@given(st.integers(2, 20), st.integers(1, 4))
def test_processes_share_the_prompts_that_one_would_take(count, world):
    whole = batch(count)
    assert len(whole) == min(count, len(ROWS))
    parts = [batch(count, world, index) for index in range(world)]
    assert [i for part in parts for i in part.indices] == list(whole.indices)
    assert [p for part in parts for p in part.prompts] == list(whole.prompts)
    columns = [v for part in parts for v in part.columns.get("place", ())]
    assert columns == list(whole.columns["place"])


def test_another_seed_takes_other_prompts():
    assert batch(4).prompts != batch(4, seed=4).prompts


def test_scales_are_those_of_the_reference(tmp_path):
    trainer = make_trainer(tmp_path, lora=True)
    with torch.no_grad():  # a policy that has moved away from its reference
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    moved, still = trainer, make_trainer(tmp_path / "still", lora=True)
    moved.calibrate_once()
    still.calibrate_once()
    assert moved.normalizer.state_dict() == still.normalizer.state_dict()
    assert moved.normalizer.statistics.count.tolist() == [16, 16]  # 8 prompts, twice each


def test_scales_are_fitted_once(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.calibrate_once()
    monkeypatch.setattr(trainer.collector, "collect", lambda *_, **__: pytest.fail("asked again"))
    trainer.calibrate_once()
