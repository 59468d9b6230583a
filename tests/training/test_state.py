import json
from types import SimpleNamespace

import pytest
import torch

from moodpo.rewards.normalize import Normalizer
from moodpo.training.alarms import SignalWatch
from moodpo.training.checkpoints import STATE_NAME
from moodpo.training.metrics import MetricStore
from moodpo.training.parallel import Processes
from moodpo.training.state import restore_state, run_state
from tiny_trainers import make_trainer


def recorder():
    return SimpleNamespace(training=MetricStore(), watch=SignalWatch())


def alone(index=0):
    return Processes(None, 1, index, torch.device("cpu"))


@pytest.mark.parametrize(("index", "means"), [(0, {"kl": 2.0}), (1, {})])
def test_the_first_process_goes_on_with_the_metrics_of_all(tmp_path, index, means):
    kept = recorder()
    kept.training.add("kl", 6.0, 3)
    normalizer = Normalizer("running", 2)
    normalizer.observe(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    state = run_state(kept, normalizer, alone())
    (tmp_path / STATE_NAME).write_text(json.dumps(state))
    again = recorder()
    restored = restore_state(tmp_path, again, alone(index))
    assert restored.state_dict() == normalizer.state_dict()
    assert again.watch.state_dict() == kept.watch.state_dict()
    assert again.training.names == ["kl"]
    assert again.training.pop_means() == means


def test_only_checkpoints_hold_a_state(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "checkpoint-1" / STATE_NAME).is_file()
    assert not (tmp_path / STATE_NAME).exists()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert (folder / "moodpo.json").is_file()
        assert "1 optimizer steps" in (folder / "README.md").read_text()
