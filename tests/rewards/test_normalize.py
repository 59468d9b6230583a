from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moodpo.errors import ConfigError, ManifestError, RewardError
from moodpo.rewards.normalize import (
    Moments,
    Normalizer,
    merge_moments,
    moments,
    standardize,
)

NAN = math.nan
rows = st.lists(
    st.tuples(*[st.one_of(st.just(NAN), st.floats(-1e3, 1e3, width=32))] * 2), max_size=12
)


def as_rewards(values: list[tuple[float, ...]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 2)


def test_moments_by_hand() -> None:
    found = moments(torch.tensor([[1.0, NAN], [3.0, 10.0], [8.0, NAN]]))
    assert found.count.tolist() == [3, 1]
    assert found.mean.tolist() == [4, 10]
    assert found.m2.tolist() == [9 + 1 + 16, 0]
    torch.testing.assert_close(found.std(), torch.tensor([26 / 3, 0.0]).double().sqrt())
    assert found.scale()[1] == 1  # nothing varies: centered, not divided


@given(rows, rows)
def test_merging_equals_seeing_everything_at_once(
    a: list[tuple[float, ...]], b: list[tuple[float, ...]]
) -> None:
    merged = merge_moments(moments(as_rewards(a)), moments(as_rewards(b)))
    together = moments(as_rewards(a + b))
    assert torch.equal(merged.count, together.count)
    torch.testing.assert_close(merged.mean, together.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(merged.m2, together.m2, rtol=1e-7, atol=1e-6)


@given(rows)
def test_z_scores_have_mean_zero_and_unit_spread(values: list[tuple[float, ...]]) -> None:
    rewards = as_rewards(values).double()
    statistics = moments(rewards)
    again = moments(standardize(rewards, statistics))
    assert torch.equal(again.count, statistics.count)
    torch.testing.assert_close(again.mean, torch.zeros(2).double(), rtol=0, atol=1e-6)
    varied = statistics.std() > 1e-2
    ones = torch.ones(2).double()
    torch.testing.assert_close(again.std()[varied], ones[varied], rtol=1e-6, atol=0)


def test_running_statistics_by_hand() -> None:
    normalizer = Normalizer("running", 2)
    first = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    torch.testing.assert_close(normalizer.normalize(first), first)  # nothing seen: unchanged
    normalizer.observe(first)
    torch.testing.assert_close(
        normalizer.normalize(torch.tensor([[1.0, 5.0], [3.0, 7.0], [NAN, 5.0]])),
        torch.tensor([[-1.0, 0.0], [1.0, 2.0], [NAN, 0.0]]),
        equal_nan=True,
    )
    normalizer.observe(torch.tensor([[NAN, 5.0]]))
    assert normalizer.statistics.count.tolist() == [2, 3]


def test_rounding_of_a_large_constant_is_not_blown_up() -> None:
    normalizer = Normalizer("running", 1)
    constant = torch.tensor([[1e6], [1e6 + 0.0625]])  # neighbors in float32
    normalizer.observe(constant)
    assert normalizer.normalize(constant).abs().max() <= 0.0625


def test_normalize_takes_any_leading_shape_and_keeps_the_dtype() -> None:
    normalizer = Normalizer("running", 2)
    normalizer.observe(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    pairs = torch.tensor([[[0.0, 0.0], [2.0, 4.0]]])  # [B, 2, K]
    kept = pairs.clone()
    torch.testing.assert_close(
        normalizer.normalize(pairs), torch.tensor([[[-1.0, -1.0], [1.0, 1.0]]])
    )
    assert torch.equal(pairs, kept)
    assert normalizer.normalize(pairs.bfloat16()).dtype == torch.bfloat16


def test_none_changes_nothing_and_learns_nothing() -> None:
    normalizer = Normalizer("none", 2)
    rewards = torch.tensor([[1.0, NAN], [3.0, 9.0]])
    normalizer.observe(rewards)
    normalizer.calibrate(rewards)
    assert torch.equal(normalizer.normalize(rewards).nan_to_num(-7), rewards.nan_to_num(-7))
    assert not normalizer.statistics.count.any()


def test_calibrate_is_fixed_once_and_ignores_later_batches() -> None:
    normalizer = Normalizer("calibrate", 1)
    with pytest.raises(ConfigError, match="Call calibrate"):
        normalizer.normalize(torch.tensor([[1.0]]))
    normalizer.calibrate(torch.tensor([[1.0], [3.0]]))
    normalizer.observe(torch.tensor([[100.0]]))
    assert normalizer.normalize(torch.tensor([[5.0]])).tolist() == [[3.0]]


def test_calibration_needs_a_score_for_every_objective() -> None:
    with pytest.raises(ConfigError, match="Objective 1 has no score in the 2 reference samples"):
        Normalizer("calibrate", 2).calibrate(torch.tensor([[1.0, NAN], [2.0, NAN]]))


@given(rows, rows)
def test_a_saved_normalizer_goes_on_bit_for_bit(
    seen: list[tuple[float, ...]], later: list[tuple[float, ...]]
) -> None:
    normalizer = Normalizer("running", 2)
    normalizer.observe(as_rewards(seen))
    restored = Normalizer.from_state_dict(json.loads(json.dumps(normalizer.state_dict())))
    for one in (normalizer, restored):
        one.observe(as_rewards(later))
    assert restored.kind == "running"
    for a, b in zip(
        (normalizer.statistics.count, normalizer.statistics.mean, normalizer.statistics.m2),
        (restored.statistics.count, restored.statistics.mean, restored.statistics.m2),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_damaged_states_are_refused() -> None:
    state = Normalizer("running", 2).state_dict()
    with pytest.raises(ManifestError, match="shapes"):
        Normalizer.from_state_dict({**state, "mean": [0.0]})
    with pytest.raises(ManifestError, match="damaged"):
        Normalizer.from_state_dict({key: state[key] for key in ("kind", "num_objectives")})
    with pytest.raises(ManifestError, match="Unknown reward normalization"):
        Normalizer.from_state_dict({**state, "kind": "whiten"})


def test_impossible_inputs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'whiten'.*none, running, calibrate"):
        Normalizer("whiten", 2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"3 columns .* 2 objectives"):
        Normalizer("running", 2).observe(torch.zeros(1, 3))
    with pytest.raises(RewardError, match="row 1, objective 0 is infinite"):
        Normalizer("running", 2).observe(torch.tensor([[0.0, 0.0], [math.inf, 0.0]]))


def test_empty_moments_are_neutral() -> None:
    some = moments(torch.tensor([[1.0], [4.0]]))
    for merged in (merge_moments(Moments.empty(1), some), merge_moments(some, Moments.empty(1))):
        assert torch.equal(merged.mean, some.mean)
        assert torch.equal(merged.m2, some.m2)


def test_the_ideal_is_the_best_so_far_on_the_normalized_scale():
    normalizer = Normalizer("calibrate", 2)
    normalizer.calibrate(torch.tensor([[0.0, 10.0], [2.0, NAN], [1.0, 30.0]]))
    # Standard deviations sqrt(2/3) and 10, means 1 and 20.
    torch.testing.assert_close(normalizer.ideal(), torch.tensor([1.5**0.5, 1.0]))
    normalizer.observe(torch.tensor([[1.0, 50.0], [NAN, 0.0]]))
    torch.testing.assert_close(normalizer.ideal(), torch.tensor([1.5**0.5, 3.0]))
    assert torch.equal(normalizer.normalize(torch.tensor([1.0, 20.0])), torch.zeros(2))
    again = Normalizer.from_state_dict(json.loads(json.dumps(normalizer.state_dict())))
    assert torch.equal(again.ideal(), normalizer.ideal())


def test_without_rewards_the_ideal_is_zero_and_older_states_have_none():
    normalizer = Normalizer("none", 2)
    assert normalizer.ideal().tolist() == [0.0, 0.0]
    state = normalizer.state_dict()
    del state["best"]
    assert Normalizer.from_state_dict(state).ideal().tolist() == [0.0, 0.0]
