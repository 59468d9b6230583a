from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from moodpo.errors import RewardSpecError
from moodpo.rewards import ModelReward, load_rewards
from moodpo.rewards.checkpoint import Checkpoint, pad_rows
from tiny_checkpoints import (
    build_tiny_distilbert_reward,
    build_tiny_gpt2_reward,
    tiny_gpt2_tokenizer,
)

# --- what is loaded -------------------------------------------------------------------------------


def test_padding_by_hand() -> None:
    rows = [
        {"input_ids": [5, 6], "token_type_ids": [0, 1]},
        {"input_ids": [7, 8, 9], "token_type_ids": [0, 1, 1]},
    ]
    padded = pad_rows(rows, pad_token_id=4)
    assert padded["input_ids"].tolist() == [[5, 6, 4], [7, 8, 9]]
    assert padded["token_type_ids"].tolist() == [[0, 1, 0], [0, 1, 1]]
    assert padded["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_positions_that_start_after_the_padding_index_are_not_usable() -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=300,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=34,
    )
    with torch.random.fork_rng(devices=[]):
        model = RobertaForSequenceClassification(config)
    checkpoint = Checkpoint.from_model(model, tiny_gpt2_tokenizer(), source="tiny")
    assert checkpoint.max_tokens == 32
    rows = [{"input_ids": list(range(10, 42))}]
    assert torch.isfinite(checkpoint.logits(rows, batch_size=1)).all()


def test_models_are_loaded_without_dropout_or_gradients(checkpoints: dict[str, Path]) -> None:
    for reward in load_rewards([f"{path}#like={name}" for name, path in checkpoints.items()]):
        assert isinstance(reward, ModelReward)
        model = reward.checkpoint.model
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(reward.score(["Hi"], ["Ok."]), reward.score(["Hi"], ["Ok."]))


# --- checkpoints that must not score --------------------------------------------------------------


def test_a_causal_model_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint at all")
    with pytest.raises(RewardSpecError, match="causal language model"):
        load_rewards([str(tmp_path)])


def test_a_head_that_would_be_random_is_refused(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints["helpful"], tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardSpecError, match=r"lacks the weights score\.weight.*random"):
        load_rewards([str(folder)])


BLOCK = "transformer.h.1.attn"


@pytest.mark.parametrize(
    ("name", "shape", "refused"),
    [
        ("score.bias", [1], True),
        ("gating.weight", [5, 16], True),
        ("v_head.summary.weight", [1, 16], True),
        ("regression_layer.weight", [1, 16], True),
        ("transformer.h.2.ln_1.weight", [16], True),  # a layer more than the config says
        (f"{BLOCK}.c_extra.bias", [16], True),
        (f"{BLOCK}.bias", [1, 1, 128, 128], False),  # GPT-2's masks, saved by old releases
        (f"{BLOCK}.masked_bias", [], False),
        ("transformer.position_ids", [1, 128], False),
        ("lm_head.weight", [264, 16], False),
        ("transformer.pooler.dense.weight", [16, 16], False),
        ("model.encoder.version", [1], False),
        ("final_logits_bias", [1, 264], False),
    ],
)
def test_weights_that_the_score_would_leave_out_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, name: str, shape: list[int], refused: bool
) -> None:
    folder = Path(shutil.copytree(checkpoints["helpful"], tmp_path / "other_head"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: torch.ones(shape)}, folder / "model.safetensors", {"format": "pt"})
    if refused:
        with pytest.raises(RewardSpecError, match=rf"has the weights {name}, which a GPT2ForSeq"):
            load_rewards([str(folder)])
    else:
        expected = load_rewards([str(checkpoints["helpful"])])[0].score(["Hi"], ["Ok."])
        assert torch.equal(load_rewards([str(folder)])[0].score(["Hi"], ["Ok."]), expected)


@pytest.mark.parametrize(
    ("auto_map", "model_type"),
    [
        ({"AutoModelForSequenceClassification": "own.Own"}, "gpt2"),
        ({"AutoConfig": "own.OwnConfig"}, "own"),
    ],
)
def test_code_that_comes_with_a_checkpoint_is_neither_run_nor_asked_about(
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    auto_map: dict[str, str],
    model_type: str,
) -> None:
    folder = Path(shutil.copytree(checkpoints["helpful"], tmp_path / "own_code"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": auto_map, "model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('was run')")
    monkeypatch.setattr("builtins.input", None)
    with pytest.raises(RewardSpecError, match=r"needs code of its own \(auto_map\).*not run here"):
        load_rewards([str(folder)])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
        ("model.safetensors", None, r"model.safetensors is cut off: \d+ of \d+ bytes"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "Cannot load"),
        ("config.json", b"[7]", "no readable config.json"),
    ],
)
def test_damaged_files_are_named(
    checkpoints: dict[str, Path], tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    folder = Path(shutil.copytree(checkpoints["helpful"], tmp_path / "damaged"))
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[:-9] if content is None else content)
    with pytest.raises(RewardSpecError, match=message):
        load_rewards([str(folder)])


@pytest.mark.parametrize(
    "change",
    [{"pad_token_id": 32000}, {"quantization_config": {"quant_method": "gptq", "bits": 4}}],
)
def test_configurations_that_no_model_can_be_built_from_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(checkpoints["humor"], tmp_path / "odd"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RewardSpecError, match=f"Cannot load the reward model '{folder}'"):
        load_rewards([f"{folder}#like=humor"])


def test_damaged_weights_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["humor"], tmp_path / "torn"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "reward"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RewardSpecError, match="Cannot load the reward model"):
        load_rewards([str(folder)])


def test_a_preset_whose_label_moved_is_refused(tmp_path: Path) -> None:
    moved = build_tiny_distilbert_reward(tmp_path / "moved", labels=("HUMOR", "NO_HUMOR"))
    with pytest.raises(RewardSpecError, match="expects 'humor' at index 1"):
        load_rewards([f"{moved}#like=humor"])
    (reward,) = load_rewards([f"{moved}#like=humor&label=humor"])
    assert reward.describe()["label"] == 0


def test_a_preset_of_another_architecture_is_refused(tmp_path: Path) -> None:
    changed = build_tiny_gpt2_reward(tmp_path / "changed", labels=("NO_HUMOR", "HUMOR"))
    with pytest.raises(
        RewardSpecError, match=r"GPT2ForSequenceClassification \(score at last_token"
    ):
        load_rewards([f"{changed}#like=humor"])
