import json
import math
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from moodpo.rewards import RewardPanel
from moodpo.training.interlude import interlude, random_state_kept
from moodpo.training.metrics import PhaseClock
from tiny_policies import tiny_model
from tiny_trainers import PROMPTS, assert_same, capitals, logged, make_trainer, parameters, vowels

TIMED = ("time/", "runtime", "per_second")
STEP = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


def test_random_numbers_go_on_as_if_nothing_had_been_drawn():
    def draw():
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with random_state_kept():
        assert draw() == expected
    assert draw() == expected


class Cutter:
    """A reward that cuts one of every two texts."""

    name = "cutter"

    def __init__(self):
        self.texts = 0

    def score(self, prompts, completions, columns=None):
        self.texts += len(completions)
        return [0.0] * len(completions)

    def pop_cuts(self):
        texts, self.texts = self.texts, 0
        return texts // 2, texts

    def describe(self):
        return {"name": self.name, "kind": "object"}


def test_what_is_counted_within_is_not_counted_outside():
    panel, clock, model = RewardPanel([Cutter()]), PhaseClock(), torch.nn.Dropout()
    cache = panel.cache
    panel.score(["p"] * 4, ["c"] * 4)
    clock.seconds["train"] = 2.0
    with interlude(model, panel, clock):
        model.eval()
        assert panel.pop_cuts() == (0, 0)
        panel.score(["p"] * 6, ["c"] * 6)
        clock.seconds["train"] = 3.0
        assert panel.cache is not cache
    assert (panel.cache, clock.seconds, model.training) == (cache, {"train": 2.0}, True)
    assert panel.pop_cuts() == (2, 4)
    assert panel.pop_cuts() == (0, 0)


def noisy(completions, **_):
    """Draws from every global generator, as a careless reward may."""
    noise = random.random() + float(np.random.rand())
    return [noise * len(text) + torch.rand(1).item() for text in completions]


def crowded(completions, **_):
    """A score that shows which texts it was asked about together, as rounding does."""
    return [len(text) + 0.1 * len(completions) for text in completions]


crowded.deterministic = True


class Disturbances(TrainerCallback):
    """Evaluates in every other way within steps."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        was_training = model.training
        self.trainer.evaluate(metric_key_prefix="test")
        self.trainer.predict(Dataset.from_dict({"prompt": PROMPTS[3:5]}))
        self.trainer.evaluate({"a": Dataset.from_dict({"prompt": PROMPTS[:2]})})
        assert model.training == was_training


@pytest.mark.parametrize(
    "settings",
    [
        {"rewards": (noisy, capitals), "reward_normalization": "running"},
        {"rewards": (crowded, vowels), "max_new_tokens": 1, "eval_on_start": True},
    ],
    ids=["random-numbers", "remembered-scores"],
)
def test_evaluations_leave_no_trace_in_training(tmp_path, settings):
    settings |= {
        "max_steps": 4,  # into a second epoch
        "logging_steps": 3,
        "log_completions": 2,
        "lora": True,
        **STEP,
    }
    plain_settings = {k: v for k, v in settings.items() if k != "eval_on_start"}
    plain = make_trainer(tmp_path / "plain", **plain_settings)
    plain.train()
    drawn = torch.rand(1)
    disturb = Disturbances()
    watched = make_trainer(
        tmp_path / "watched",
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:5]}),
        eval_strategy="steps",
        eval_steps=1,
        callbacks=[disturb],
        **settings,
    )
    disturb.trainer = watched
    watched.train()
    assert torch.equal(torch.rand(1), drawn)
    assert_same(parameters(watched), parameters(plain), atol=0, rtol=0)
    assert watched.normalizer.state_dict() == plain.normalizer.state_dict()

    def training_logs(trainer):
        return [
            {k: v for k, v in entry.items() if not any(word in k for word in TIMED)}
            for entry in trainer.state.log_history
            if "loss" in entry or "train_loss" in entry
        ]

    assert training_logs(watched) == training_logs(plain)
    assert len(training_logs(plain)) == 2
    plain_rows, rows = (
        (tmp_path / run / "completions.jsonl").read_text().splitlines()
        for run in ("plain", "watched")
    )
    assert len(plain_rows) == 4  # two of each of training's two logs
    assert [json.loads(row) for row in plain_rows if row not in rows] == []


def number(prompts, completions, **_):
    return [float(prompt.split()[1]) for prompt in prompts]


def numbered(*numbers):
    return Dataset.from_dict({"prompt": [f"Say {n} words please." for n in numbers]})


def test_each_call_has_its_own_prefix(tmp_path):
    held_out = {"few": numbered(1, 2), "many": numbered(5, 6, 10)}
    asked = []
    trainer = make_trainer(
        tmp_path,
        rewards=(number, vowels),
        prompts=[f"Say {n} words please." for n in range(8)],
        eval_dataset=held_out,
        sweep=lambda trainer: asked.append(1) or {"hypervolume": 2.5},
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_many_objective/number/mean",
        per_device_eval_batch_size=2,
        **STEP,
    )
    trainer.train()
    means = "objective/number/mean"
    assert logged(trainer, f"eval_few_{means}") == [pytest.approx(1.5)] * 2
    assert logged(trainer, f"eval_many_{means}") == [pytest.approx(7.0)] * 2
    assert trainer.state.best_metric == pytest.approx(7.0)
    assert len(logged(trainer, means)) == 2
    assert logged(trainer, "eval_hypervolume") == [2.5, 2.5]
    assert len(asked) == 2  # once for each evaluation, not for each data set
    tested = trainer.evaluate(numbered(4), metric_key_prefix="test")
    predicted = trainer.predict(numbered(3, 4), metric_key_prefix="p").metrics
    evaluated = trainer.evaluate(numbered(8))
    for found, prefix, mean in ((tested, "test", 4), (predicted, "p", 3.5), (evaluated, "eval", 8)):
        ours = {name for name in found if name != "epoch"}
        assert all(name.startswith(f"{prefix}_") for name in ours)
        assert found[f"{prefix}_{means}"] == pytest.approx(mean)
        assert math.isfinite(found[f"{prefix}_loss"])
        assert {f"{prefix}_kl", f"{prefix}_pairs/active", f"{prefix}_rewards/margins"} <= ours
    assert ("eval_hypervolume" in evaluated, len(asked)) == (True, 3)


def test_the_evaluation_loss_is_the_mean_over_pairs_however_they_are_batched(tmp_path):
    def letters(prompts, completions, **_):
        rows = zip(prompts, completions, strict=True)
        return [0.0 if "tie" in prompt else float(sum(map(ord, text))) for prompt, text in rows]

    def size_of_text(prompts, completions, **_):
        return [score / 100.0 for score in letters(prompts, completions)]

    prompts = [f"A tie {i}." if i in (0, 1, 4) else f"Say {i}." for i in range(7)]
    found = []
    for size in (2, 3, 7):  # of two, one batch is all ties, and one half
        trainer = make_trainer(
            tmp_path / str(size),
            rewards=(letters, size_of_text),
            ref_model=tiny_model(seed=9),  # so that every pair has a loss of its own
            per_device_eval_batch_size=size,
            eval_dataset=Dataset.from_dict({"prompt": prompts}),
            reward_normalization="none",
        )
        found.append(trainer.evaluate())
    assert found[0]["eval_pairs/ties"] == pytest.approx(3 / 7)
    assert abs(found[0]["eval_loss"] - math.log(2)) > 1e-3
    for other in found[1:]:
        assert other["eval_loss"] == pytest.approx(found[0]["eval_loss"], rel=1e-5)
    nothing = trainer.evaluate(Dataset.from_dict({"prompt": ["A tie.", "Another tie."]}))
    assert math.isnan(nothing["eval_loss"])
