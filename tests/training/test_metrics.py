import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.training.metrics import MetricStore, PhaseClock


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
