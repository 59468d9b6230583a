"""Sweeps of a run: which prompts they take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moodpo.cli.after import spread_rows


def test_rows_are_spread_by_hand():
    assert spread_rows(10, 4) == [0, 2, 5, 7]
    assert spread_rows(3, 5) == [0, 1, 2]


@given(total=st.integers(1, 500), count=st.integers(1, 500))
def test_rows_are_distinct_in_order_and_within(total, count):
    rows = spread_rows(total, count)
    assert len(rows) == min(total, count)
    assert rows == sorted(set(rows))
    assert rows[0] >= 0
    assert rows[-1] < total
