import logging

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, StepLR

from moodpo.training.schedule import follow_schedule
from tiny_trainers import assert_same, logged, make_trainer, parameters, vowels


def linear(steps, *, rate=0.4):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (rate, rate / 2)]
    optimizer = torch.optim.SGD(groups)
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))


@pytest.mark.parametrize(
    ("steps", "change"), [(4, None), (8, (0.2, 0.3)), (2, (0.2, 0.0)), (16, (0.2, 0.35))]
)
def test_the_next_step_takes_the_rate_of_its_own_schedule(steps, change):
    before, after = linear(4), linear(steps)
    for _ in range(2):
        before.optimizer.step()
        before.step()
    after.load_state_dict(before.state_dict())
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    found = follow_schedule(after)
    assert found == (None if change is None else pytest.approx(change))
    expected = 0.2 if change is None else change[1]
    assert [g["lr"] for g in after.optimizer.param_groups] == pytest.approx(
        [expected, expected / 2]
    )
    assert after.get_last_lr() == [g["lr"] for g in after.optimizer.param_groups]
    assert follow_schedule(after) is None


def test_other_schedulers_are_left_alone():
    scheduler = StepLR(linear(3).optimizer, 1)
    scheduler.optimizer.param_groups[0]["lr"] = 7.0
    assert follow_schedule(scheduler) is None
    assert follow_schedule(None) is None
    assert scheduler.optimizer.param_groups[0]["lr"] == 7.0


def test_a_longer_run_goes_on_at_its_rate_and_a_finished_one_not_at_all(tmp_path, caplog):
    asked = []

    def counted(completions, **_):
        asked.append(len(completions))
        return [float(len(text)) for text in completions]

    settings = {
        "rewards": (counted, vowels),
        "lr_scheduler_type": "linear",
        "learning_rate": 0.04,
        "optim": "adamw_torch",
        "per_device_train_batch_size": 4,  # 3 steps in an epoch: the last is in the middle of one
        "gradient_accumulation_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "lora": True,
    }
    make_trainer(tmp_path, max_steps=2, **settings).train()
    with caplog.at_level(logging.WARNING, logger="moodpo"):
        longer = make_trainer(tmp_path, max_steps=4, **settings)
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "schedule of 4 steps gives step 3" in caplog.text
    assert logged(longer, "learning_rate")[-2:] == pytest.approx([0.02, 0.01])
    caplog.clear()
    asked.clear()
    settings["lr_scheduler_type"] = "constant"  # a step more would show
    for max_steps in (4, 3):
        finished = make_trainer(tmp_path, max_steps=max_steps, **settings)
        result = finished.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert result.global_step == finished.state.global_step == 4
        assert_same(parameters(finished), parameters(longer), atol=0, rtol=0)
        finished.save_model()
        assert finished.manifest().training["steps"] == 4
    assert not asked
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-5").exists()
