import math
import warnings

import hypothesis.strategies as st
import pytest
from hypothesis import given

from moodpo.conditioning.weights import (
    parse_bound_ranges,
    parse_bounds,
    parse_weights,
    round_bound,
    validate_bounds,
    validate_weights,
)
from moodpo.errors import ConfigError, WeightsError

NAMES = ("helpful", "harmless")
RANGES = {"harmless": (0.1, 0.5)}


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


def test_bound_ranges_by_hand():
    assert parse_bound_ranges(["harmless=0.1:0.5", "helpful=-2"]) == {
        "harmless": (0.1, 0.5),
        "helpful": (-2.0, -2.0),
    }
    assert parse_bound_ranges([]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["harmless"], "NAME=LOW:HIGH"),
        (["harmless=x"], "NAME=LOW:HIGH"),
        (["harmless=0.5:0.1"], "NAME=LOW:HIGH"),
        (["harmless=inf"], "NAME=LOW:HIGH"),
        (["=0.5"], "NAME=LOW:HIGH"),
        (["harmless=0.1", "harmless=0.2"], "twice"),
    ],
)
def test_bound_ranges_that_cannot_be_read(given, message):
    with pytest.raises(ConfigError, match=message):
        parse_bound_ranges(given)


def test_bounds_are_those_that_the_policy_knows():
    assert parse_bounds("harmless=0.3", NAMES, RANGES) == {"harmless": 0.3}
    assert parse_bounds("", NAMES, {}) == {}
    helpful, harmless = validate_bounds({"harmless": 0.123456}, NAMES, RANGES)
    assert math.isnan(helpful)
    assert harmless == 0.123
    with pytest.warns(UserWarning, match=r"0\.7 of 'harmless' is outside .* 0\.1 to 0\.5"):
        validate_bounds({"harmless": 0.7}, NAMES, RANGES)


@pytest.mark.parametrize(
    ("text", "ranges", "message"),
    [
        ("helpful=0.3", RANGES, "only on harmless.*--lower_bounds helpful=LOW:HIGH"),
        ("helpful=0.3", {}, "on none"),
        ("harmles=0.3", RANGES, "Did you mean 'harmless'"),
        ("harmless", RANGES, "Cannot read"),
        ("harmless=0.2:0.3", RANGES, "Ask for one value"),
    ],
)
def test_bounds_that_cannot_be_asked(text, ranges, message):
    with pytest.raises(WeightsError, match=message):
        parse_bounds(text, NAMES, ranges)


def test_an_infinite_bound_is_refused():
    with pytest.raises(WeightsError, match="must be finite"):
        validate_bounds({"harmless": math.inf}, NAMES, RANGES)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_rounded_bounds_are_what_a_prompt_writes(value, end):
    rounded = round_bound(value, (end, 0.0))
    assert float(f"{rounded:g}") == rounded
    assert rounded == pytest.approx(value, rel=5.1e-3, abs=5.1e-3 * abs(end))


@pytest.mark.parametrize(
    ("value", "of", "rounded"),
    [
        (0.123456, (0.0, 0.5), 0.123),
        (0.000123456, (0.0, 0.5), 0.0),
        (-1e-16, (-1.0, 9.0), 0.0),
        (1234.5, (0.0, 0.5), 1230.0),  # beyond the range: a warning, and the usual digits
        (0.00123456, (0.0, 0.0), 0.00123),
    ],
)
def test_a_bound_is_no_finer_than_its_range(value, of, rounded):
    assert str(round_bound(value, of)) == str(rounded)
