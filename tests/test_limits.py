import math
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from moodpo.errors import ConfigError
from moodpo.limits import RANGES, check_ranges


@given(st.sampled_from(sorted(RANGES)), st.floats(allow_nan=True))
def test_only_values_within_their_range_pass(name, value):
    low, high = RANGES[name]
    if low <= value < math.inf and (high is None or value <= high):
        check_ranges({name: value})
    else:
        with pytest.raises(ConfigError, match=f"^{name} must be at least"):
            check_ranges({name: value})


def test_the_shortest_completion_is_at_most_the_longest():
    check_ranges({"min_new_tokens": 8, "max_new_tokens": 8})
    with pytest.raises(ConfigError, match="min_new_tokens must be at least 0 and at most 8; got 9"):
        check_ranges({"min_new_tokens": 9, "max_new_tokens": 8})


def test_ranges_are_checked_without_torch():
    code = "import sys, moodpo.limits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", sorted(RANGES))
def test_no_setting_is_infinite(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be at least .*; got {value}"):
        check_ranges({name: value})
