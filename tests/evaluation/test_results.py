from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evaluation.tiny_results import tiny_result
from moodpo.errors import ManifestError
from moodpo.evaluation.results import (
    SCHEMA,
    VERSION,
    Baseline,
    HeldOut,
    Normalization,
    SweepResult,
    mean_over_prompts,
)

KEYS = [
    *("schema", "version", "objectives", "policy", "data", "weights", "prompts", "seeds"),
    *("sampling", "rewards", "completions", "lengths", "finished", "kl", "held_out", "baseline"),
    *("normalization", "reference_point", "metrics", "steerability", "warnings", "timings"),
    "versions",
]


def full_result() -> SweepResult:
    rewards = np.arange(12, dtype=float).reshape(2, 3, 2) / 3
    rewards[0, 1, 0] = math.nan
    texts = (("a", "b\n", "ü \ud800"), ("", "=cmd", "\x00"))
    return tiny_result(
        rewards,
        [[0.1, 0.9], [1.0, 0.0]],
        completions=texts,
        finished=np.array([[True, False, True], [True] * 3]),
        kl=np.full((2, 3), 0.25),
        held_out=HeldOut(names=("judge",), rewards=rewards[:, :, :1]),
        baseline=Baseline(
            name="base",
            rewards=rewards - 1,
            completions=texts,
            lengths=np.ones((2, 3), dtype=int),
            held_out_rewards=rewards[:, :, 1:],
            finished=np.zeros((2, 3), dtype=bool),
        ),
        metrics={"hypervolume": {"value": 1.5, "low": math.nan, "high": 2.0}},
        steerability={"mean": {"value": math.nan}},
        warnings=("careful",),
        timings={"total": 0.1},
        versions={"moodpo": "0"},
    )


def test_the_schema_is_a_promise():
    content = full_result().to_dict()
    assert list(content) == KEYS
    assert (content["schema"], content["version"]) == ("moodpo.results", 1)
    assert list(content["held_out"]) == ["names", "rewards"]
    assert list(content["normalization"]) == ["mean", "std", "source"]
    assert list(content["baseline"])[:3] == ["name", "rewards", "completions"]


def test_a_file_gives_back_what_was_saved(tmp_path):
    result = full_result()
    result.save(tmp_path / "results.json")
    loaded = SweepResult.load(tmp_path / "results.json")
    assert loaded.to_dict() == result.to_dict()
    assert np.array_equal(loaded.rewards, result.rewards, equal_nan=True)
    assert loaded.completions == result.completions
    assert math.isnan(loaded.metrics["hypervolume"]["low"])
    assert math.isnan(loaded.steerability["mean"]["value"])
    assert loaded.lengths.dtype == np.int64
    assert loaded.finished.tolist() == [[True, False, True], [True, True, True]]
    assert loaded.baseline.finished.dtype == np.bool_
    assert os.listdir(tmp_path) == ["results.json"]


@given(hnp.arrays(np.float64, (2, 2, 1), elements=st.floats(allow_infinity=False)))
def test_every_number_survives_exactly(rewards):
    result = tiny_result(rewards, [[1.0], [1.0]])
    again = SweepResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert np.array_equal(again.rewards, rewards, equal_nan=True)


def test_gaps_are_written_as_null(tmp_path):
    full_result().save(tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["rewards"][0][1][0] is None


def test_a_record_cannot_be_changed_by_accident():
    rewards = np.zeros((1, 1, 1))
    result = tiny_result(rewards, [[1.0]])
    rewards[0, 0, 0] = 5.0
    assert result.rewards[0, 0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        result.rewards[0, 0, 0] = 1.0


def test_points_by_hand():
    result = full_result()
    assert result.points.tolist() == [[pytest.approx(4 / 6), 1.0], [pytest.approx(8 / 3), 3.0]]
    assert result.baseline_points is not None
    assert np.allclose(result.baseline_points, result.points - 1)
    units = Normalization(mean=np.array([1.0, 1.0]), std=np.array([2.0, 0.5]), source="test")
    normalized = dataclasses.replace(result, normalization=units).normalized_points
    assert normalized[1].tolist() == pytest.approx([(8 / 3 - 1) / 2, 4.0])


def test_a_mean_without_any_score_is_unknown():
    means = mean_over_prompts(np.array([[[1.0, math.nan], [math.nan, math.nan]]]))
    assert means.tolist() == [[1.0, pytest.approx(math.nan, nan_ok=True)]]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    full_result().save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_result(np.zeros((1, 1, 1)), [[1.0]]).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_what_json_cannot_hold_is_not_saved(tmp_path):
    rewards = np.zeros((1, 1, 1))
    infinite = tiny_result(rewards + math.inf, [[1.0]])
    strange = tiny_result(rewards, [[1.0]], policy={"name": object()})
    for result in (infinite, strange):
        with pytest.raises(ManifestError, match="what JSON cannot"):
            result.save(tmp_path / "results.json")
    assert not os.listdir(tmp_path)


def test_paths_are_saved_as_text_and_folders_are_made(tmp_path):
    result = tiny_result(np.zeros((1, 1, 1)), [[1.0]], policy={"path": tmp_path})
    result.save(tmp_path / "new" / "results.json")
    loaded = SweepResult.load(tmp_path / "new" / "results.json")
    assert loaded.policy == {"path": str(tmp_path)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "Cannot read results"),
        (b"", "not valid JSON"),
        (b'{"schema": "moodpo.results", "ver', "not valid JSON"),
        (b'{"schema": NaN}', "not valid JSON"),
        (b"\xff\xfe\x00", "Cannot read results"),
        (b"[1, 2]", "not a moodpo result"),
        (b'{"schema": "moodpo.run", "version": 1}', "not a moodpo result"),
        (b'{"schema": "moodpo.results", "version": 2}', "Upgrade moodpo"),
        (b'{"schema": "moodpo.results", "version": 0}', "version 0 is not supported"),
        (b'{"schema": "moodpo.results", "version": true}', "version True is not supported"),
        (b'{"schema": "moodpo.results"}', "version None is not supported"),
        (b'{"schema": "moodpo.results", "version": 1}', "missing objectives"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path, content, reason):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=reason) as caught:
        SweepResult.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("rewards", [[[1.0, 2.0]]], r"rewards must have shape \[2, 3, 2\]"),
        ("rewards", [[[1.0], [2.0, 3.0]]], "inhomogeneous"),
        ("rewards", "text", "could not convert"),
        ("weights", [[None, 1.0], [1.0, 0.0]], "weights must be finite"),
        ("weights", [], "at least one weight vector"),
        ("prompts", ["a"], "shape"),
        ("prompts", "abc", "list of texts"),
        ("seeds", [1], "seeds has 1"),
        ("completions", [["a", "b", "c"]], "completions must hold 2 x 3"),
        ("completions", [["a", "b", "c"], ["a", "b", 3]], "list of texts"),
        ("lengths", [[1, 2, 3], [1, 2, None]], "TypeError"),
        ("finished", [[True]], "finished must have shape"),
        ("finished", [[True, False, 1], [True] * 3], "true and false"),
        ("finished", [[True, False, None], [True] * 3], "true and false"),
        ("kl", [[0.0]], "kl must have shape"),
        ("objectives", ["a", "a"], "objective twice"),
        ("reference_point", [0.0], "reference_point must have shape"),
        ("normalization", {"mean": [0, 0], "std": [1, 0], "source": ""}, "above 0"),
        ("normalization", {"mean": [0, 0]}, "std"),
        ("held_out", {"names": ["x", "y"], "rewards": [[[0.0]]]}, "held_out.rewards"),
        ("baseline", {"name": "b", "rewards": [], "completions": []}, "baseline.rewards"),
        ("metrics", None, "TypeError"),
    ],
)
def test_shapes_are_checked_on_loading(tmp_path, key, value, reason):
    content = full_result().to_dict()
    content[key] = value
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ManifestError, match=reason) as caught:
        SweepResult.load(tmp_path / "results.json")
    assert "moodpo evaluate" in str(caught.value)


def test_a_missing_key_is_named(tmp_path):
    content = full_result().to_dict()
    del content["kl"], content["seeds"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ManifestError, match="missing seeds, kl"):
        SweepResult.load(tmp_path / "results.json")


def test_files_from_before_it_was_known_how_answers_ended_are_read():
    content = full_result().to_dict()
    del content["finished"], content["baseline"]["finished"]
    older = SweepResult.from_dict(content)
    assert older.finished is None
    assert older.baseline.finished is None
    assert older.to_dict()["finished"] is None


def test_keys_of_later_minor_additions_are_ignored():
    content = full_result().to_dict()
    assert SweepResult.from_dict({**content, "note": "x"}).to_dict() == content
    assert (content["schema"], content["version"]) == (SCHEMA, VERSION)
