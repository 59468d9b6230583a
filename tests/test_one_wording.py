"""The same weights reach the model as the same tokens, whatever way they come in."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from moodpo.cli.chat import Chat
from moodpo.conditioning.instruction import WEIGHT_FORMATS, Conditioner
from moodpo.conditioning.weights import parse_weights
from moodpo.evaluation.sweep import run_sweep
from moodpo.evaluation.weights import default_weights, load_weights_file
from moodpo.generation.base import Completion, SamplingConfig
from moodpo.policy import SteerablePolicy
from moodpo.rewards import RewardPanel, load_rewards
from moodpo.training.draws import dirichlet_draw
from moodpo.training.rollout import RolloutCollector
from tiny_policies import tiny_model, tiny_tokenizer

SAMPLING = SamplingConfig(max_new_tokens=4)
PROMPT = "Hi"
ONE_WEIGHT = (
    *(0.0, 0.25, 0.5, 0.75, 1.0, 1 / 3, 2 / 3, 1 / 7, 0.145, 0.005, 0.125, 0.15, 0.4, 0.85),
    *(k / 20 for k in range(21)),
    *(k / 200 for k in range(1, 200, 13)),
)
GRIDS = {
    ("b", "a"): [(w, 1 - w) for w in ONE_WEIGHT],
    ("c", "a", "b"): [
        *((1 / 3, 1 / 3, 1 / 3), (0.05, 0.05, 0.9), (0.335, 0.335, 0.33), (1 / 7, 2 / 7, 4 / 7)),
        *map(tuple, default_weights(3).tolist()),
    ],
}
TEMPLATES = {"fields": "{a} {b} {{}} {weights}"}


class Recorder:
    """A generator that keeps what it is asked."""

    pad_token_id, generation_batch_size = 0, 64

    def __init__(self):
        self.asked = []

    def generate(self, prompt_ids, *, sampling, num_completions, seeds):
        self.asked += prompt_ids
        completion = Completion(token_ids=(70,), finished=False)
        return [(completion,) * num_completions for _ in prompt_ids]


def panel(names):
    return RewardPanel(load_rewards([f"{name}=tiny_rewards:letters" for name in names]))


@pytest.fixture(scope="module")
def policy():
    made = SteerablePolicy(tiny_model(), tiny_tokenizer(), Conditioner(objectives=("a", "b")))
    made.generator = Recorder()
    return made


def by_dictionary(policy, grid, folder):
    for row in grid:
        policy.generate(PROMPT, dict(zip(policy.objectives, row, strict=True)))


def by_rows(policy, grid, folder):
    policy.generate([PROMPT] * len(grid), grid)


def by_float32_tensor(policy, grid, folder):
    policy.generate([PROMPT] * len(grid), torch.tensor(grid, dtype=torch.float32))


def by_array(policy, grid, folder):
    policy.generate([PROMPT] * len(grid), np.array(grid))


def by_sample_in_float32(policy, grid, folder):
    weights = torch.tensor(grid, dtype=torch.float32)
    policy.sample([PROMPT] * len(grid), weights, seeds=[0] * len(grid), sampling=SAMPLING)


def by_command_line(policy, grid, folder):
    for row in grid:
        text = ",".join(f"{n}={w!r}" for n, w in zip(policy.objectives, row, strict=True))
        policy.generate(PROMPT, parse_weights(text, policy.objectives))


def by_chat(policy, grid, folder):
    for row in grid:
        chat = Chat(policy, (1.0, *(0.0,) * (len(row) - 1)), seed=0)
        text = ",".join(f"{n}={w!r}" for n, w in zip(policy.objectives, row, strict=True))
        chat.take(f"/weights {text}")
        chat.take(PROMPT)


def by_sweep(policy, grid, folder, weights=None):
    weights = np.array(grid) if weights is None else weights
    run_sweep(policy, [PROMPT], panel(policy.objectives), sampling=SAMPLING, weights=weights)


def by_csv(policy, grid, folder):
    path = folder / "weights.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([policy.objectives, *grid])
    by_sweep(policy, grid, folder, load_weights_file(path, policy.objectives))


def by_json(policy, grid, folder):
    path = folder / "weights.json"
    path.write_text(json.dumps([dict(zip(policy.objectives, row, strict=True)) for row in grid]))
    by_sweep(policy, grid, folder, load_weights_file(path, policy.objectives))


def by_training(policy, grid, folder):
    """As training encodes what its sampler drew: float32."""
    collector = RolloutCollector(
        conditioner=policy.conditioner,
        tokenizer=policy.tokenizer,
        generator=policy.generator,
        panel=panel(policy.objectives),
        sampling=SAMPLING,
        draw=dirichlet_draw(1.0, len(grid[0])),
    )
    rows = torch.tensor(grid, dtype=torch.float32)
    policy.generator.asked += [collector.encode(PROMPT, row) for row in rows]


WAYS = (
    *(by_dictionary, by_rows, by_float32_tensor, by_array, by_sample_in_float32, by_command_line),
    *(by_chat, by_sweep, by_csv, by_json, by_training),
)


@pytest.mark.filterwarnings("ignore:Objective weights sum to")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("names", GRIDS, ids="".join)
def test_the_same_weights_are_the_same_tokens(policy, names, way, tmp_path):
    grid = GRIDS[names]
    for weight_format in (*WEIGHT_FORMATS, *TEMPLATES):
        template = TEMPLATES.get(weight_format)
        if template is not None and len(names) > 2:
            template = f"{template} {{c}}"
        conditioner = Conditioner(
            objectives=names,
            weight_format="unary" if template else weight_format,
            template=template,
        )
        asked = policy.written_by(conditioner)
        asked.generator = Recorder()
        way(asked, grid, tmp_path)
        expected = [conditioner.encode(policy.tokenizer, PROMPT, row) for row in grid]
        assert asked.generator.asked == expected


def test_the_default_sweep_asks_for_exact_tenths(policy):
    asked = replace(policy.conditioner, weight_format="percent")
    swept = policy.written_by(asked)
    swept.generator = Recorder()
    run_sweep(swept, [PROMPT], panel("ab"), sampling=SAMPLING)
    expected = [asked.encode(policy.tokenizer, PROMPT, [k / 10, 1 - k / 10]) for k in range(11)]
    assert sorted(swept.generator.asked) == sorted(expected)
