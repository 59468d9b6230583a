import subprocess
import sys

import pytest

import moodpo.generation

PACKAGES = ("moodpo", "moodpo.baselines", "moodpo.generation", "moodpo.rewards")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_imported_on_use_and_not_before(package):
    code = (
        f"import sys, {package} as p; early = 'torch' in sys.modules\n"
        "found = [getattr(p, name) for name in p.__all__]\n"
        "sys.exit(early or 'torch' not in sys.modules or None in found)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_name_that_is_not_there_is_missed_as_usual():
    with pytest.raises(AttributeError, match=r"module 'moodpo.generation' has no attribute 'Gen'"):
        _ = moodpo.generation.Gen
