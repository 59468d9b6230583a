"""A run that learns nothing says so, once, and does not end as if it had."""

from __future__ import annotations

import logging
import re

import pytest

from moodpo.errors import RewardError
from moodpo.manifest import RunManifest
from moodpo.training.alarms import MAX_UNDEFINED_STEPS, Counts, SignalWatch, find_alarms
from moodpo.training.pairs import PairStatistics
from tiny_trainers import capitals, make_trainer, vowels

FINE = {
    "objective/a/mean": 0.5,
    "objective/a/std": 0.1,
    "objective/b/mean": 2.0,
    "objective/b/std": 1e-3,
    "completions/truncated": 0.99,
}
BUSY = {"steps": 10, "labeled": 40, "active": 30}


@pytest.mark.parametrize(
    ("means", "counts", "said"),
    [
        ({}, {}, []),
        ({"objective/a/mean": None}, {}, ["reward a gave no score"]),
        ({"objective/a/std": 0.0}, {}, ["reward a gave every answer the same score, 0.5"]),
        ({"objective/b/std": 1e-7}, {}, ["reward b gave every answer the same score, 2"]),
        ({"objective/b/mean": 0.0, "objective/b/std": 0.0}, {}, ["b gave every answer"]),
        ({}, {"undefined": 20}, ["50% of the pairs are undefined"]),
        ({}, {"undefined": 19}, []),
        (
            {},
            {"undefined": 40, "active": 0, "idle_steps": 10},
            ["100% of the pairs are undefined", "10 of 10 steps .*: their scores are missing"],
        ),
        ({}, {"idle_steps": 1}, ["1 of 10 steps had no pair .* equally good"]),
        ({"completions/truncated": 1.0}, {}, ["cut at 64 tokens .*max_new_tokens"]),
    ],
)
def test_alarms(means, counts, said):
    values = {k: v for k, v in {**FINE, **means}.items() if v is not None}
    found = find_alarms(values, Counts(**{**BUSY, **counts}), ("a", "b"), max_new_tokens=64)
    assert len(found) == len(said)
    for text, pattern in zip(found.values(), said, strict=True):
        assert re.search(pattern, text), text


def test_a_log_without_steps_alarms_nobody():
    assert find_alarms({}, Counts(), ("a", "b"), max_new_tokens=64) == {}


def missing(completions, **_):
    return [None] * len(completions)


def constant(completions, **_):
    return [0.1] * len(completions)


def stops_scoring(after):
    calls = []

    def stops(completions, **_):
        calls.append(1)
        return [None if len(calls) > after else float(len(c)) for c in completions]

    return stops


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def train(folder, rewards, **settings):
    defaults = {
        "reward_normalization": "running",
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "max_new_tokens": 4,
        "save_strategy": "no",
    }
    trainer = make_trainer(folder, rewards=rewards, lora=True, **{**defaults, **settings})
    return trainer, trainer.train


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        (
            (missing, stops_scoring(0)),
            r"in 2 steps: a reward gave no scores \(NaN or None\)",
        ),
        ((vowels, missing), r"in 2 steps: a reward gave no scores"),
        ((constant, lambda completions, **_: [3.0] * len(completions)), "equally good"),
    ],
    ids=["no scores", "one without scores", "ties"],
)
def test_a_run_without_any_pair_fails_and_is_saved(tmp_path, caplog, rewards, why):
    _, start = train(tmp_path, rewards)
    with pytest.raises(RewardError, match=why) as caught:
        start()
    assert f"{tmp_path}/checkpoint-2" in str(caught.value)
    assert RunManifest.load(tmp_path / "checkpoint-2").training["steps"] == 2
    said = warnings_of(caplog)
    assert len(said) == len(set(said))  # once per kind
    assert any("steps had no pair to train on" in text for text in said)


def test_a_reward_that_stops_ends_the_run(tmp_path, caplog):
    trainer, start = train(
        tmp_path, (vowels, stops_scoring(2)), max_steps=40, logging_steps=1, max_new_tokens=12
    )
    with pytest.raises(RewardError, match=f"in {MAX_UNDEFINED_STEPS} steps in a row"):
        start()
    assert trainer.state.global_step == 2 + MAX_UNDEFINED_STEPS
    assert (tmp_path / f"checkpoint-{2 + MAX_UNDEFINED_STEPS}").is_dir()
    assert sum("gave no score" in text for text in warnings_of(caplog)) == 1


def test_an_objective_without_variance_is_said_and_trains_on(tmp_path, caplog):
    _, start = train(tmp_path, (vowels, constant), max_new_tokens=12)
    start()
    said = [text for text in warnings_of(caplog) if "same score" in text]
    assert len(said) == 1
    assert "reward constant gave every answer the same score, 0.1" in said[0]


def test_good_runs_are_not_warned_of(tmp_path, caplog):
    _, start = train(
        tmp_path, (lambda completions, **_: list(map(len, completions)), capitals), min_new_tokens=0
    )
    start()
    assert not [t for t in warnings_of(caplog) if "_lambda_" in t and "no score" in t]


def counts(undefined):
    rest = dict.fromkeys(("active", "ties", "duplicates", "relabeled", "flipped"), 0)
    return PairStatistics(labeled=4, undefined=undefined, **rest)


def test_several_processes_are_counted_together():
    watch = SignalWatch()
    watch.add_step(counts(undefined=4), lambda values: 2 * values)
    assert (watch.since_log.labeled, watch.since_log.undefined) == (8, 8)


def test_the_watch_is_remembered():
    watch = SignalWatch()
    for _ in range(3):
        watch.add_step(counts(undefined=4), lambda values: values)
    again = SignalWatch()
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
    for _ in range(MAX_UNDEFINED_STEPS - 3):
        assert again._verdict(ends=False) is None
        again.add_step(counts(undefined=4), lambda values: values)
    assert "8 steps in a row" in again._verdict(ends=False)
    old = SignalWatch()
    old.load_state_dict(None)  # of a checkpoint that did not count yet
    old.add_step(counts(undefined=0), lambda values: values)
    assert old._verdict(ends=True) is None
