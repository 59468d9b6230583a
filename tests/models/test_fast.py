"""Without `moodpo.kernels` everything runs, and comes to the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moodpo.models import fast, plain
from tiny_policies import tiny_model
from tiny_trainers import logged, make_trainer

TESTS = Path(__file__).parents[1]
STEPS = """
import importlib.abc, json, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("moodpo.kernels"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, sys.argv[1])
from models.test_fast import losses
print(json.dumps(losses(sys.argv[2])))
assert not any(name.startswith("moodpo.kernels") for name in sys.modules)
"""


def losses(folder):
    """Of a short run with LoRA: a rollout, log-probabilities, gradients, steps."""
    trainer = make_trainer(folder, lora=True, max_new_tokens=26)
    trainer.train()
    return logged(trainer, "loss")


def test_a_run_without_kernels_comes_to_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEPS, str(TESTS), str(tmp_path / "plain")],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = losses(tmp_path / "fast")
    assert len(expected) >= 2
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 50)])
def test_the_plain_head_is_that_of_the_kernel(bias):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(7, 8), torch.randn(50, 8), torch.arange(7)
    values = []
    for module in (fast, plain):
        rows = hidden.clone().requires_grad_()
        logps, entropies = module.chunked_logps(rows, weight, targets, bias)
        logps.sum().backward()
        values.append((logps.detach(), entropies, rows.grad))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert plain.chunked_logps(hidden, weight, targets, bias, with_entropies=False)[1] is None


def test_nothing_else_is_touched():
    model = tiny_model()
    before = dict(model.__dict__)
    with plain.grouped_attention(model), plain.packed_linears(model, steps=99):
        assert not plain.use_pair_attention(model)
        assert plain.fuse_lora(model) == 0
    plain.drop_pair_attention(model)
    assert model.__dict__ == before


def test_both_sides_of_the_door_have_the_same_names():
    assert all(hasattr(plain, name) for name in fast.__all__)
