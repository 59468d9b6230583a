import pytest
import torch
from peft import LoraConfig, get_peft_model

from moodpo.training.lookahead import replicate
from tiny_policies import tiny_model
from tiny_trainers import assert_same, logged, make_trainer, parameters

STEP = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 3}


def watch(trainer):
    """The rollouts of a trainer's steps, and its parameters before each."""
    rollouts, before = [], []
    pair = trainer._pair

    def capture(rollout, *args):
        rollouts.append(rollout)
        before.append(parameters(trainer))
        return pair(rollout, *args)

    trainer._pair = capture
    trainer.train()
    return rollouts, before


def test_a_replica_shares_what_is_frozen_and_follows_what_is_trained():
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear"))
    replica = replicate(model)
    copies = dict(replica.named_parameters())
    for name, parameter in model.named_parameters():
        assert (copies[name] is parameter) == (not parameter.requires_grad)
        assert not copies[name].requires_grad
    assert model.training
    assert not replica.training


def test_each_step_but_the_first_trains_on_the_policy_before_it(tmp_path):
    settings = {"lora": True, **STEP}
    rollouts, before = watch(make_trainer(tmp_path / "ahead", async_rollouts=True, **settings))
    assert len(rollouts) == 3
    for step, lag in ((0, 0), (1, 1), (2, 1)):
        other = make_trainer(tmp_path / f"other{step}", **settings)
        with torch.no_grad():
            for name, parameter in other.model.named_parameters():
                parameter.copy_(before[step - lag][name])
        batch = [other.train_dataset[i] for i in order(other)[4 * step : 4 * step + 4]]
        prompts = other._prompt_batch([other.data_collator(batch)])
        expected = other._collect(prompts, (other.args.seed, "train", step))
        assert rollouts[step].prompts == expected.prompts
        assert rollouts[step].completion_ids == expected.completion_ids
    moved = [not torch.equal(before[0][n], v) for n, v in before[2].items() if "lora_B" in n]
    assert all(moved)


def order(trainer):
    """Positions of the training prompts in the order of the first epoch."""
    texts = [row["prompt"] for row in trainer.train_dataset]
    loader = trainer.get_train_dataloader()
    return [texts.index(prompt) for batch in loader for prompt in batch["prompts"]]


def test_looking_ahead_repeats_itself_and_spans_epochs(tmp_path):
    # 12 prompts: an epoch is 3 steps, and the fourth begins another.
    settings = {**STEP, "max_steps": 4, "lora": True, "async_rollouts": True}
    first, second = (make_trainer(tmp_path / name, **settings) for name in "ab")
    first.train()
    second.train()
    assert_same(parameters(first), parameters(second), atol=0, rtol=0)
    assert first.state.global_step == 4
    assert len(logged(first, "loss")) == 4


def test_what_stops_a_rollout_stops_training(tmp_path):
    calls = []

    def fails_later(completions, **_):
        calls.append(1)
        if len(calls) > 2:  # calibration and the first step
            raise OSError("the scorer is gone")
        return [float(len(text)) for text in completions]

    def second(completions, **_):
        return [1.0 / (1 + len(text)) for text in completions]

    trainer = make_trainer(tmp_path, rewards=(fails_later, second), async_rollouts=True, **STEP)
    with pytest.raises(Exception, match="the scorer is gone"):
        trainer.train()


def test_evaluation_waits_for_the_rollout_under_way(tmp_path):
    running, overlaps = [], []

    def counts(completions, **_):
        running.append(1)
        overlaps.append(len(running))
        running.pop()
        return [float(len(text)) for text in completions]

    def second(completions, **_):
        return [1.0 / (1 + len(text)) for text in completions]

    trainer = make_trainer(
        tmp_path,
        rewards=(counts, second),
        async_rollouts=True,
        eval_dataset=make_trainer(tmp_path / "data").train_dataset,
        eval_strategy="steps",
        eval_steps=1,
        **STEP,
    )
    trainer.train()
    assert len(logged(trainer, "eval_loss")) == 3
    assert max(overlaps) == 1
