"""What is written: valid JSON, whole, and readable for whom the umask lets read."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluation.tiny_results import steered, tiny_result
from moodpo.baselines.record import BaselineRecord
from moodpo.cli.outputs import write_sweep
from moodpo.data.csv import write_csv
from moodpo.evaluation.comparison import compare
from moodpo.evaluation.journal import ScoredAnswer, SweepJournal
from moodpo.evaluation.report.comparison import write_comparison
from moodpo.files import (
    hash_file,
    hash_weights,
    json_line,
    share_files,
    without_non_finite,
    write_json,
    write_text,
)
from moodpo.manifest import RunManifest
from moodpo.training.metrics import MetricStore
from moodpo.training.recorder import append_jsonl

NAN, INFINITY = math.nan, math.inf
MANIFEST = RunManifest(
    objectives=("a", "b"),
    rewards=(),
    conditioning={},
    scalarization="linear",
    normalizer={},
    reference={},
)


def nan_result():
    rewards = np.array(steered(4))
    rewards[0, 0, 0] = NAN
    return tiny_result(rewards)


def write_journal(folder):
    scores = {"rewards": (NAN, 1.0), "held_out": (NAN,), "kl": NAN}
    answer = ScoredAnswer(phase="policy", row=0, completion="text", length=1, **scores)
    SweepJournal(folder / "journal.jsonl", fingerprint="x").append([answer])


def write_compared(folder):
    sweeps = [("one", nan_result()), ("two", nan_result())]
    write_comparison(compare(sweeps, num_resamples=2), folder)


WRITERS = {
    "metrics.jsonl": lambda folder: append_jsonl(
        folder / "metrics.jsonl", [{"eval_loss": NAN, "deep": [{"x": -INFINITY}], "step": 1}]
    ),
    "moodpo.json": lambda folder: replace(MANIFEST, training={"x": NAN, "y": (INFINITY,)}).save(
        folder
    ),
    "baseline.json": lambda folder: BaselineRecord(
        kind="soups", conditioning={}, training={"seconds": NAN}
    ).save(folder),
    "moodpo_state.json": lambda folder: write_json(folder / "moodpo_state.json", {"kl": [NAN, 1]}),
    "results.json": lambda folder: nan_result().save(folder / "results.json"),
    "journal.jsonl": write_journal,
    "comparison.json": write_compared,
}


def refuse(name):
    raise ValueError(f"{name} is not JSON")


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_writes_json_that_everyone_reads(tmp_path, name):
    WRITERS[name](tmp_path)
    text = (tmp_path / name).read_text(encoding="utf-8")
    for document in text.splitlines() if name.endswith("jsonl") else [text]:
        json.loads(document, parse_constant=refuse)
    assert "null" in text or name == "comparison.json"


def write_weights(folder):
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    share_files(folder)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize(
    "write",
    [
        *WRITERS.values(),
        lambda folder: write_text(folder / "x.txt", "x"),
        lambda folder: write_csv(folder / "x.csv", [{"a": 1}]),
        lambda folder: write_sweep(tiny_result(steered(4)), folder),
        write_weights,
    ],
    ids=[*WRITERS, "text", "csv", "sweep", "safetensors"],
)
def test_files_have_the_modes_of_the_umask(tmp_path, write, umask, mode):
    if umask != 0o022 and write in (WRITERS["comparison.json"],):
        pytest.skip("slow, and the same functions")
    before = os.umask(umask)
    try:
        write(tmp_path)
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in files} == {
        p.name: oct(mode) for p in files
    }


def test_sharing_changes_no_mode_that_somebody_chose(tmp_path):
    chosen = tmp_path / "key"
    chosen.write_text("x")
    chosen.chmod(0o400)
    share_files(tmp_path)
    assert chosen.stat().st_mode & 0o777 == 0o400


def test_what_is_no_number_becomes_null():
    values = {"a": NAN, "b": [1.5, (INFINITY, "NaN")], "c": {"d": -INFINITY, "e": None}, "f": True}
    expected = {"a": None, "b": [1.5, [None, "NaN"]], "c": {"d": None, "e": None}, "f": True}
    assert without_non_finite(values) == expected
    assert json.loads(json_line(values), parse_constant=refuse) == expected


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in Path(tmp_path).iterdir()] == ["x.json"]


def test_a_sum_that_was_no_number_comes_back_as_none_was(tmp_path):
    store = MetricStore()
    store.add("kl", NAN, 2)
    write_json(tmp_path / "state.json", store.state_dict())
    restored = MetricStore()
    restored.load_state_dict(json.loads((tmp_path / "state.json").read_text()))
    assert math.isnan(restored.pop_means()["kl"])


def test_writing_json_leaves_no_half_file_behind(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_hash_weights_sees_every_change(tmp_path):
    assert hash_weights(tmp_path) is None
    save_file({"w": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    first = hash_weights(tmp_path)
    assert first == hash_file(tmp_path / "adapter_model.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    assert first != hash_weights(tmp_path)
    first = hash_weights(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert first != hash_weights(tmp_path)
