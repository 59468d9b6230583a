import json
from dataclasses import replace

import pytest

from moodpo.errors import ManifestError
from moodpo.manifest import (
    RunManifest,
    check_continuation,
)

MANIFEST = RunManifest(
    objectives=("helpful", "harmless"),
    rewards=({"name": "helpful"}, {"name": "harmless"}),
    conditioning={"weight_format": "decimal", "template": None},
    scalarization="linear",
    normalizer={"kind": "calibrate", "mean": [0.1, 1 / 3]},
    reference={"kind": "base"},
    lineage=({"path": "iter0"},),
)


def test_round_trip_is_exact(tmp_path):
    MANIFEST.save(tmp_path)
    assert RunManifest.load(tmp_path) == MANIFEST


def test_missing_and_damaged_files_say_what_to_do(tmp_path):
    with pytest.raises(ManifestError, match="--reward_models"):
        RunManifest.load(tmp_path)
    path = MANIFEST.save(tmp_path)
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(ManifestError, match="damaged"):
        RunManifest.load(tmp_path)
    path.write_text(text.replace('"version": 1', '"version": 99'))
    with pytest.raises(ManifestError, match="version 99"):
        RunManifest.load(tmp_path)
    values = json.loads(text)
    path.write_text(json.dumps({**values, "surprise": 1}))
    with pytest.raises(ManifestError, match="surprise"):
        RunManifest.load(tmp_path)
    del values["scalarization"]
    path.write_text(json.dumps(values))
    with pytest.raises(ManifestError, match="incomplete"):
        RunManifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": ("helpful", "humor")}, "objectives = helpful, harmless"),
        ({"objectives": ("harmless", "helpful")}, "the order of objectives"),
        ({"conditioning": {"weight_format": "unary", "template": None}}, "weight_format"),
        ({"conditioning": {"weight_format": "decimal", "template": "x"}}, "template"),
        (
            {"conditioning": {**MANIFEST.conditioning, "chat_template_kwargs": {"think": False}}},
            "chat_template_kwargs = None, this run has {'think': False}",
        ),
    ],
)
def test_a_next_iteration_that_reads_weights_differently_is_refused(change, message):
    check_continuation(MANIFEST, MANIFEST, source="iter1")
    with pytest.raises(ManifestError, match=message):
        check_continuation(MANIFEST, replace(MANIFEST, **change), source="iter1")
