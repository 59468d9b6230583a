from __future__ import annotations

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from moodpo.errors import ConfigError
from moodpo.evaluation.plan import SweepOptions, SweepPlan, pick_prompts, prompt_seeds


def test_every_attribute_of_a_plan_is_an_option():
    assert list(SweepOptions.__annotations__) == list(SweepPlan.__dataclass_fields__)
    types = {name: field.type for name, field in SweepPlan.__dataclass_fields__.items()}
    assert types == {n: t.__forward_arg__ for n, t in SweepOptions.__annotations__.items()}


def numbered(total):
    return Dataset.from_dict({"prompt": [str(n) for n in range(total)], "place": range(total)})


def test_prompts_are_spread_by_hand():
    assert pick_prompts(numbered(10), 4) == (["0", "2", "5", "7"], {"place": [0, 2, 5, 7]})
    assert pick_prompts(numbered(3), 5)[0] == ["0", "1", "2"]


@given(total=st.integers(1, 500), count=st.integers(1, 500))
def test_rows_are_distinct_in_order_and_within(total, count):
    rows = pick_prompts(numbered(total), count)[1]["place"]
    assert len(rows) == min(total, count)
    assert rows == sorted(set(rows))
    assert rows[0] >= 0
    assert rows[-1] < total


def test_seeds_belong_to_the_prompt_and_the_seed():
    assert prompt_seeds(0, 5)[:3] == prompt_seeds(0, 3)
    assert prompt_seeds(0, 3) != prompt_seeds(1, 3)
    assert all(0 <= seed < 2**53 for seed in prompt_seeds(7, 100))
    assert len(set(prompt_seeds(0, 1000))) == 1000
    with pytest.raises(ConfigError, match="at least 0"):
        prompt_seeds(-1, 2)


@given(st.integers(0, 2**40), st.integers(1, 20))
def test_seeds_repeat(seed, count):
    assert prompt_seeds(seed, count) == prompt_seeds(seed, count)
