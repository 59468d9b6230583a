from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.records import Completion, RolloutBatch
from moodpo.rewards.normalize import Normalizer
from moodpo.training.metrics import (
    METRICS,
    MetricStore,
    PhaseClock,
    metrics_page,
    record_rollout,
)
from moodpo.training.pairs import build_pairs
from tiny_trainers import make_trainer


def test_means_by_hand_and_forgotten_after_popping():
    store = MetricStore()
    store.add("a", 6.0, 3)
    store.add("a", torch.tensor(2.0), torch.tensor(1))
    store.add("empty", 0.0, 0)
    assert store.pop_means() == {"a": 2.0}
    assert store.pop_means() == {}


def test_values_that_are_not_finite_do_not_count():
    store = MetricStore()
    store.add_values("r", torch.tensor([1.0, float("nan"), 3.0, float("inf")]))
    assert store.pop_means() == {"r": 2.0}


def test_a_process_that_lacks_a_metric_is_completed():
    ours, theirs = MetricStore(), MetricStore()
    ours.add("b", 1.0, 1)
    theirs.add("a", 4.0, 2)
    for store in (ours, theirs):
        store.complete(["b", "a"])
        assert store.names == list(store.state_dict()) == ["a", "b"]
    assert ours.pop_means() == {"b": 1.0}
    assert theirs.pop_means() == {"a": 2.0}


def test_processes_are_reduced_as_one():
    ours, theirs = MetricStore(), MetricStore()
    ours.add("x", 1.0, 1)
    theirs.add("x", 8.0, 2)
    other = torch.tensor([[8.0, 2.0]], dtype=torch.float64)
    assert ours.pop_means(lambda stacked: stacked + other) == {"x": 3.0}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.data())
def test_an_interrupted_window_gives_the_mean_of_the_whole(values, data):
    cut = data.draw(st.integers(0, len(values)))
    before, after, whole = MetricStore(), MetricStore(), MetricStore()
    for value in values[:cut]:
        before.add("x", value)
    after.load_state_dict(before.state_dict())
    for value in values[cut:]:
        after.add("x", value)
    for value in values:
        whole.add("x", value)
    assert after.pop_means() == pytest.approx(whole.pop_means())


def test_the_clock_adds_up_and_names_phases():
    heard = []
    clock = PhaseClock(heard.append)
    for phase in ("generate", "score", "generate"):
        with clock(phase):
            pass
    assert heard == ["generate", "score", "generate"]
    seconds = clock.pop()
    assert set(seconds) == {"generate", "score"}
    assert all(value >= 0 for value in seconds.values())
    assert clock.pop() == {}


def test_what_is_recorded_of_a_rollout_by_hand():
    completions = (Completion((1, 2), finished=True), Completion((3,), finished=False))
    rollout = RolloutBatch(
        prompts=["p"],
        labels=torch.tensor([[[0.5, 0.5]]]),
        prompt_ids=[((9,),)],
        completions=[(completions,)],
        texts=[(("a", "b"),)],
        rewards=torch.tensor([[[[0.7, 1.0], [0.1, float("nan")]]]]),
    )
    options = {"normalizer": Normalizer("none", 2), "scalarization": "linear"}
    pairs, statistics = build_pairs(rollout, encode=lambda *_: (), **options)
    store = MetricStore()
    record_rollout(store, rollout, pairs, statistics, ("first", "second"))
    means = store.pop_means()
    assert means["objective/first/mean"] == pytest.approx(0.4)
    assert means["objective/second/mean"] == 1.0  # a missing score does not count
    assert (means["completions/mean_length"], means["completions/truncated"]) == (1.5, 0.5)
    assert (means["pairs/active"], means["pairs/undefined"]) == (0.0, 1.0)


def test_every_metric_that_a_run_logs_is_in_the_table(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    own = {name for name in logged if "/" in name} | (logged & METRICS.keys())
    names = trainer.objectives
    known = {name.replace("NAME", each) for name in METRICS for each in names}
    assert own <= known
    assert {"kl", "entropy", "pairs/active"} <= own


def test_the_page_is_the_table():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == metrics_page()
