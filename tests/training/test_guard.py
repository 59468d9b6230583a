"""A NaN or an infinity ends a run: the weights stay, the disk stays, and the run can go on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from moodpo.errors import ConfigError, DivergenceError
from moodpo.records import PairBatch
from moodpo.rewards.normalize import Normalizer
from moodpo.training.guard import (
    MAX_SKIPPED_STEPS,
    NumberGuard,
    find_source,
)
from tiny_trainers import make_trainer, parameters

NAN, INFINITY = math.nan, math.inf
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "max_new_tokens": 6}


def poison_gradient(trainer, step, value):
    """From that step on, one element of one trained tensor's gradient is `value`."""
    parameter = [p for p in trainer.model.parameters() if p.requires_grad][-1]

    def spoil(gradient):
        if trainer.state.global_step + 1 < step:
            return gradient
        spoiled = gradient.clone()
        spoiled.view(-1)[0] = value
        return spoiled

    parameter.register_hook(spoil)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, NAN),
        ({}, INFINITY),
        ({"max_grad_norm": 0.0}, -INFINITY),
        ({"max_grad_norm": None}, NAN),
        ({"bf16": True}, NAN),
        ({"rpo_alpha": 0.5}, NAN),
        ({"optim": "adamw_torch", "lora": True}, NAN),
        ({"gradient_accumulation_steps": 1}, INFINITY),
        ({"activation_checkpointing": True}, NAN),
    ],
    ids=str,
)
def test_a_non_finite_gradient_is_not_stepped_on(tmp_path, settings, value):
    trainer = make_trainer(tmp_path, **{**SAVING, **settings})
    poison_gradient(trainer, 3, value)
    with pytest.raises(DivergenceError) as caught:
        trainer.train()
    said = str(caught.value)
    assert "gradient is NaN or infinite at step 3" in said
    assert f"resume from the last good checkpoint, {tmp_path}/checkpoint-2." in said
    assert all(p.isfinite().all() for p in parameters(trainer).values())
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("lora", [False, True])
def test_the_last_good_checkpoint_goes_on(tmp_path, lora):
    trainer = make_trainer(tmp_path, lora=lora, **SAVING)
    poison_gradient(trainer, 4, NAN)  # the last step
    with pytest.raises(DivergenceError, match="checkpoint-3"):
        trainer.train()
    again = make_trainer(tmp_path, lora=lora, **SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert all(p.isfinite().all() for p in parameters(again).values())
    plain = make_trainer(tmp_path / "plain", lora=lora, **{**SAVING, "save_strategy": "no"})
    plain.train()
    for key, value in parameters(plain).items():
        torch.testing.assert_close(parameters(again)[key], value, rtol=0, atol=1e-6)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    trainer = make_trainer(tmp_path, **{**SAVING, "save_strategy": "no"})
    poison_gradient(trainer, 2, NAN)
    with pytest.raises(DivergenceError, match="there is no checkpoint yet"):
        trainer.train()


@pytest.mark.parametrize("step", [1, 2])  # the last one, too
def test_a_step_that_overflows_is_not_saved(tmp_path, step):
    trainer = make_trainer(tmp_path, **{**SAVING, "max_steps": 2, "max_grad_norm": 0.0})
    trainer.create_optimizer()

    def overflow(optimizer, *_):
        if trainer.state.global_step + 1 == step:
            optimizer.param_groups[0]["params"][0].data[0] = INFINITY

    trainer.optimizer.register_step_post_hook(overflow)
    with pytest.raises(DivergenceError, match=rf"Step {step} made weights NaN or infinite"):
        trainer.train()
    assert len(list(tmp_path.glob("checkpoint-*"))) == step - 1
    with pytest.raises(DivergenceError, match="weights to be saved are NaN or infinite"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


def test_training_does_not_begin_from_weights_that_are_not_finite(tmp_path):
    trainer = make_trainer(tmp_path, lora=True, **{**SAVING, "max_steps": 2})
    trainer.train()
    file = tmp_path / "checkpoint-2" / "adapter_model.safetensors"
    weights = load_file(file)
    weights[min(weights)][0] = NAN
    save_file(weights, file, metadata={"format": "pt"})
    again = make_trainer(tmp_path, lora=True, **SAVING)
    with pytest.raises(ConfigError, match="resume from an earlier checkpoint"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# --- parts ----------------------------------------------------------------------------------


def pairs(**changes):
    values = {
        "prompt_ids": [()],
        "completion_ids": [((), ())],
        "weights": torch.ones(1, 2) / 2,
        "rewards": torch.zeros(1, 2, 2),
        "utilities": torch.zeros(1, 2),
        "rows": torch.zeros(1, dtype=torch.long),
        "labelings": torch.zeros(1, dtype=torch.long),
        "candidates": torch.zeros(1, 2, dtype=torch.long),
        "relabeled": torch.zeros(1, 2, dtype=torch.bool),
        "ref_logps": torch.zeros(1, 2),
    }
    return PairBatch(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({"rewards": torch.tensor([[[0.0, NAN], [0.0, 0.0]]])}, "normalized rewards of beta"),
        ({"utilities": torch.tensor([[INFINITY, 0.0]])}, "utilities of alpha, beta"),
        ({"ref_logps": torch.tensor([[-INFINITY, 0.0]])}, "the reference's log-probabilities"),
        ({}, "the policy's log-probabilities"),
    ],
)
def test_the_source_of_a_bad_loss_is_named(changes, source):
    found = find_source(pairs(**changes), ("alpha", "beta"), Normalizer("none", 2))
    assert source in found


def guard(*, others=0.0, scaler=None):
    return NumberGuard(
        ("alpha", "beta"),
        normalizer=lambda: Normalizer("none", 2),
        reduce=lambda values: values + others,
        scaler=lambda: scaler,
    )


def at_step(step, folder="nowhere"):
    return SimpleNamespace(output_dir=folder, learning_rate=0.1), SimpleNamespace(global_step=step)


@pytest.mark.parametrize(
    ("losses", "others", "said"),
    [
        ([0.5, NAN], 0.0, "The loss is nan, because of the policy's log-probabilities, at step 7"),
        ([0.5], 1.0, "The loss is NaN or infinite on another process at step 7"),
        ([], 1.0, "on another process"),
        ([0.5], 0.0, None),
        ([], 0.0, None),
    ],
)
def test_all_processes_decide_alike(losses, others, said):
    watch = guard(others=others)
    for loss in losses:
        watch.note_loss(torch.tensor(loss), pairs())
    if said is None:
        watch.on_pre_optimizer_step(*at_step(6), None)
        return
    with pytest.raises(DivergenceError, match=said):
        watch.on_pre_optimizer_step(*at_step(6), None)


def test_a_gradient_scaler_may_skip_some_steps():
    scaler = SimpleNamespace(is_enabled=lambda: True)
    model, watch = torch.nn.Linear(2, 1), guard(scaler=scaler)
    model.weight.grad = torch.full_like(model.weight, INFINITY)
    for _ in range(2):
        for _ in range(MAX_SKIPPED_STEPS):
            watch.on_pre_optimizer_step(*at_step(0), None, model=model)
        model.weight.grad.zero_()
        watch.on_pre_optimizer_step(*at_step(0), None, model=model)
        model.weight.grad.fill_(NAN)
    for _ in range(MAX_SKIPPED_STEPS):
        watch.on_pre_optimizer_step(*at_step(0), None, model=model)
    with pytest.raises(DivergenceError, match="gradient is NaN"):
        watch.on_pre_optimizer_step(*at_step(0), None, model=model)


TWO_PROCESSES = """
import os, sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
from moodpo.errors import DivergenceError
from test_guard import poison_gradient
from tiny_trainers import make_trainer
folder = Path({folder!r})
trainer = make_trainer(
    folder, lora=True, max_steps=3, max_new_tokens=6, save_strategy="steps", save_steps=1
)
rank, loss_of = trainer.args.process_index, trainer.learner.loss
if rank == 1 and {where!r} == "gradient":
    poison_gradient(trainer, 2, float("nan"))
if rank == 1 and {where!r} == "loss":
    def poisoned(*args):
        loss, scored = loss_of(*args)
        return loss * (float("nan") if trainer.state.global_step == 1 else 1), scored
    trainer.learner.loss = poisoned
try:
    trainer.train()
except DivergenceError as error:
    (folder / f"said{{rank}}").write_text(str(error))
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_two_processes_stop_together(tmp_path, where):
    tests = Path(__file__).parent
    code = TWO_PROCESSES.format(
        paths=[str(tests), str(tests.parent)], folder=str(tmp_path), where=where
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    port = f"--rdzv-endpoint=localhost:{20000 + os.getpid() % 20000}"
    flags = ["--nproc_per_node=2", "--rdzv-backend=c10d", port]
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, str(script)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=200,
    )
    for rank in (0, 1):
        said = (tmp_path / f"said{rank}").read_text()
        assert "at step 2" in said
        assert said.endswith("checkpoint-1.")
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
