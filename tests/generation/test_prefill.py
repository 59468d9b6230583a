import hypothesis.strategies as st
from hypothesis import given

from moodpo.generation.prefill import prefill_groups


@given(st.lists(st.integers(1, 3000), max_size=80))
def test_prefill_groups_cover_all_without_much_padding(lengths: list[int]) -> None:
    lengths = sorted(lengths, reverse=True)
    sizes = prefill_groups(lengths)
    assert sum(sizes) == len(lengths)
    assert min(sizes, default=1) >= 1
    start = 0
    for size in sizes:
        group = lengths[start : start + size]
        start += size
        assert size == 1 or group[0] * size <= 8192
        # Only small groups, or the last prompt added to one, may waste more than an eighth.
        rest = group[:-1]
        waste = len(rest) * group[0] - sum(rest)
        assert waste <= len(rest) * group[0] / 8 or group[0] * len(rest) <= 512 + group[0]


def test_prefill_groups_by_hand() -> None:
    assert prefill_groups([100] * 10) == [10]
    assert prefill_groups([1000, 100, 100]) == [1, 2]
    assert prefill_groups([100, 10, 10]) == [3]  # too small to be worth a pass of its own
    assert prefill_groups([5000, 5000]) == [1, 1]
    assert prefill_groups([]) == []
