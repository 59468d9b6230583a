import warnings

import hypothesis.strategies as st
import pytest
from hypothesis import given

from moodpo.conditioning.weights import (
    parse_weights,
    validate_weights,
)
from moodpo.errors import WeightsError

NAMES = ("helpful", "harmless")


def test_parse_weights():
    assert parse_weights("harmless=0.3, helpful=0.7", NAMES) == pytest.approx((0.7, 0.3))
    assert parse_weights("harmless=1", NAMES) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("helpful", "NAME=VALUE"),
        ("helpful=x", "NAME=VALUE"),
        ("helpfull=1", "Did you mean 'helpful'"),
        ("helpful=-1,harmless=2", "at least 0"),
        ("helpful=nan", "finite"),
        ("helpful=0,harmless=0", "All weights are 0"),
        ("helpful=0.5,helpful=0.5", "twice"),
        ("", "All weights are 0"),
    ],
)
def test_weights_that_cannot_be_read(text, message):
    with pytest.raises(WeightsError, match=message):
        parse_weights(text, NAMES)


def test_weights_are_normalized_with_a_warning_only_when_clearly_off():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert validate_weights([0.7, 0.3004], NAMES) == pytest.approx((0.69972, 0.30028), abs=1e-4)
    with pytest.warns(UserWarning, match="sum to 4"):
        assert validate_weights({"helpful": 1, "harmless": 3}, NAMES) == (0.25, 0.75)
    with pytest.raises(WeightsError, match="3 entries but there are 2"):
        validate_weights([1, 0, 0], NAMES)


@given(st.lists(st.floats(0, 1).filter(lambda w: w > 1e-3), min_size=2, max_size=2))
def test_weights_sum_to_one_and_keep_their_proportions(weights):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = validate_weights(weights, NAMES)
    assert sum(found) == pytest.approx(1)
    assert found[0] * weights[1] == pytest.approx(found[1] * weights[0])
