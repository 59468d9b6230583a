from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moodpo.errors import RewardSpecError
from moodpo.rewards.checks import check_config, resolve_label
from moodpo.rewards.specs import check_reward_specs, parse_spec

GPT2 = {"architectures": ["GPT2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}


def write_folder(path: Path, config: dict[str, Any] | None = GPT2, weights: bool = True) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if weights:
        (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # no tensors
    return path


# --- refusing -----------------------------------------------------------------------------------


def test_good_specs_pass(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    check_reward_specs(["helpful", "safe=harmless", str(folder), "org/rm", "brevity", "json:loads"])


def test_folders_that_are_no_reward_model(tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(RewardSpecError, match=message):
            check_reward_specs(["helpful", str(tmp_path / name)])

    write_folder(tmp_path / "empty", config=None, weights=False)
    refused("empty", r"no readable config.json \(FileNotFoundError\)")
    write_folder(tmp_path / "torn")
    (tmp_path / "torn" / "config.json").write_text("{")
    refused("torn", r"no readable config.json \(JSONDecodeError\)")
    write_folder(tmp_path / "light", weights=False)
    refused("light", "no weights")
    write_folder(tmp_path / "adapter", config=None)
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    refused("adapter", "LoRA adapter.*merge_and_unload")
    for architecture in ("LlamaForCausalLM", "GPT2LMHeadModel"):
        write_folder(tmp_path / architecture, {"architectures": [architecture]})
        refused(architecture, f"causal language model .{architecture}.")
    write_folder(tmp_path / "headless", {"architectures": ["BertModel"]})
    refused("headless", "is a BertModel, which has no score head")
    write_folder(tmp_path / "two", {"architectures": ["BertForSequenceClassification"]})
    refused("two", r"labels LABEL_0, LABEL_1: which one is the reward\?.*#label=1")
    check_reward_specs(["helpful", f"{tmp_path / 'two'}#label=1"])


def test_a_preset_of_another_head_is_refused_before_loading(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rm")
    with pytest.raises(RewardSpecError, match="preset 'humor' expects 2"):
        check_reward_specs(["helpful", f"{folder}#like=humor"])


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "spec", "label"),
    [
        (["LABEL_0"], "org/rm", 0),
        (["negative", "POSITIVE"], "org/rm", 1),
        (["non-toxic", "toxic"], "org/rm", 0),
        (["a", "b", "c"], "org/rm#label=2", 2),
        (["a", "B", "c"], "org/rm#label=b", 1),
        (["NO_HUMOR", "HUMOR"], "humor", 1),
        (["LABEL_0", "LABEL_1"], "humor", 1),
        (["HALLUCINATED", "FAITHFUL"], "faithful", 1),
        (["LABEL_0"], "helpful", 0),
        (["reward"], "deberta", 0),
        (["HUMOR", "NO_HUMOR"], "humor#label=humor", 0),
    ],
)
def test_resolved_labels(names: list[str], spec: str, label: int) -> None:
    assert resolve_label(names, parse_spec(spec)) == label


@pytest.mark.parametrize(
    ("names", "spec", "message"),
    [
        (["HUMOR", "NO_HUMOR"], "humor", "expects 'humor' at index 1.*humor@<commit>"),
        (["joy", "anger"], "humor", "expects 'humor' at index 1"),
        (["LABEL_0", "LABEL_1"], "helpful", "preset 'helpful' expects 1"),
        (["LABEL_0", "LABEL_1"], "org/rm", "which one is the reward"),
        (["good", "safe"], "org/rm", "which one is the reward"),
        (["a", "b", "positive"], "org/rm", "which one is the reward"),
        (["a", "b"], "org/rm#label=2", "not 2. Pass one of these names or 0 to 1"),
        (["a", "b"], "org/rm#label=c", "not 'c'"),
        (["LABEL_0"], "org/rm#score=margin", "a margin needs two labels"),
    ],
)
def test_unclear_labels_are_refused(names: list[str], spec: str, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        resolve_label(names, parse_spec(spec))


def test_configs_as_transformers_writes_and_reads_them() -> None:
    spec = parse_spec("org/rm#label=c")
    labels = {10: "c", 2: "b", 1: "a"}
    for id2label in (labels, {str(k): v for k, v in labels.items()}):
        check_config({"architectures": None, "id2label": id2label}, spec)
    with pytest.raises(RewardSpecError, match="LABEL_0, LABEL_1, LABEL_2"):
        check_config({"num_labels": 3}, spec)
