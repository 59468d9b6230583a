"""What went says what to use instead."""

from dataclasses import fields

import pytest

from moodpo.removed import REMOVED
from moodpo.training.config import MOODPOConfig


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_setting_is_no_setting_and_its_reason_names_it(name):
    assert name not in {field.name for field in fields(MOODPOConfig)}
    assert REMOVED[name].startswith(f"{name} is no more: ")
    assert REMOVED[name].endswith(".")
