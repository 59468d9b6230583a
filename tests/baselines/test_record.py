import json
import subprocess
import sys

import pytest

from moodpo.baselines import BaselineRecord, is_baseline, load_baseline
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ManifestError

RECORD = BaselineRecord(
    kind="fixed",
    conditioning=Conditioner(objectives=("a", "b")).to_dict(),
    rewards=({"name": "a", "kind": "function"},),
    base_model="org/model",
    sampling={"max_new_tokens": 8},
    adapters=("member-0",),
    details={"weights": [[0.1, 0.9]], "instructed": True},
    training={"completions": 64, "seconds": 1.5},
    versions={"torch": "2"},
)


def damage(folder, **changes):
    path = folder / "baseline.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_record_survives_its_file(tmp_path):
    assert not is_baseline(tmp_path)
    RECORD.save(tmp_path)
    assert is_baseline(tmp_path)
    assert BaselineRecord.load(tmp_path) == RECORD
    assert RECORD.objectives == ("a", "b")


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"No baseline\.json"):
        BaselineRecord.load(tmp_path)
    RECORD.save(tmp_path)
    damage(tmp_path, kind="horoscope")
    with pytest.raises(ManifestError, match="unknown kind 'horoscope'"):
        load_baseline(tmp_path)
    damage(tmp_path, surprise=1)
    with pytest.raises(ManifestError, match="surprise"):
        BaselineRecord.load(tmp_path)
    damage(tmp_path, version=2)
    with pytest.raises(ManifestError, match="version 2"):
        BaselineRecord.load(tmp_path)
    (tmp_path / "baseline.json").write_text("{")
    with pytest.raises(ManifestError, match="damaged"):
        BaselineRecord.load(tmp_path)


def test_looking_at_a_record_loads_no_torch():
    code = (
        "import sys, moodpo.baselines as b; b.is_baseline('x'); "
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
