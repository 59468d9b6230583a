import math
import subprocess
import sys
from dataclasses import fields
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from moodpo.errors import ConfigError
from moodpo.training.config import MOODPOConfig
from moodpo.training.settings import (
    Settings,
    check_choices,
    check_ranges,
    ranges,
    recorded_settings,
)


@given(st.sampled_from(sorted(ranges())), st.floats(allow_nan=True))
def test_only_values_within_their_range_pass(name, value):
    low, high = ranges()[name]
    if low <= value < math.inf and (high is None or value <= high):
        check_ranges({name: value})
    else:
        with pytest.raises(ConfigError, match=f"^{name} must be at least"):
            check_ranges({name: value})


def test_every_number_of_ours_has_a_range_that_its_default_is_in():
    for each in fields(Settings):
        if isinstance(each.default, int | float) and not isinstance(each.default, bool):
            low, high = each.metadata["range"]
            assert low <= each.default <= (math.inf if high is None else high), each.name


def test_ranges_are_of_settings_that_exist():
    assert ranges().keys() <= {f.name for f in fields(MOODPOConfig)}


def test_the_shortest_completion_is_at_most_the_longest():
    check_ranges({"min_new_tokens": 8, "max_new_tokens": 8})
    with pytest.raises(ConfigError, match="min_new_tokens must be at least 0 and at most 8; got 9"):
        check_ranges({"min_new_tokens": 9, "max_new_tokens": 8})


def test_settings_are_read_without_torch():
    code = "import sys, moodpo.training.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", sorted(ranges()))
def test_no_setting_is_infinite(name, value):
    with pytest.raises(ConfigError, match=f"^{name} must be at least .*; got {value}"):
        check_ranges({name: value})


def test_a_choice_is_one_of_its_own():
    values = {f.name: f.default for f in fields(Settings)}
    check_choices(SimpleNamespace(**values))
    with pytest.raises(ConfigError, match=r"loss_type must be one of sigmoid, ipo, .*; got 'kto'"):
        check_choices(SimpleNamespace(**{**values, "loss_type": "kto"}))


def test_the_manifest_keeps_what_changes_the_mathematics(tmp_path):
    config = MOODPOConfig(output_dir=str(tmp_path), beta=0.3, top_k=5, max_new_tokens=9)
    training, sampling = (recorded_settings(config, entry) for entry in ("training", "sampling"))
    assert (training["beta"], training["learning_rate"]) == (0.3, 5e-7)
    assert {"seed", "gradient_accumulation_steps", "concentration", "relabel"} <= training.keys()
    assert (sampling["top_k"], sampling["max_new_tokens"]) == (5, 9)
    assert not training.keys() & sampling.keys()
