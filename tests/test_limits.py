import math
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from moodpo.errors import ConfigError
from moodpo.limits import check_range


@given(
    st.floats(-1e9, 1e9),
    st.none() | st.floats(-1e9, 1e9),
    st.floats(allow_nan=True),
)
def test_only_values_within_their_range_pass(low, high, value):
    if low <= value < math.inf and (high is None or value <= high):
        check_range("size", value, low, high)
    else:
        with pytest.raises(ConfigError, match=r"^size must be at least"):
            check_range("size", value, low, high)


def test_nothing_is_in_every_range_and_an_infinity_in_none():
    check_range("size", None, 1)
    with pytest.raises(ConfigError, match=r"size must be at least 1 and finite; got inf"):
        check_range("size", math.inf, 1)


def test_ranges_are_checked_without_torch():
    code = "import sys, moodpo.limits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
