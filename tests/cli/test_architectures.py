"""`moodpo train` on policies of several architectures: it begins where the reference is."""

import json
import math

import pytest

from tiny_architectures import build
from tiny_policies import tiny_tokenizer

PACKED = "packed pairs on; tiled head on; fused LoRA on"


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft notices GPT-2's layers by itself
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama", PACKED),
        ("gpt2", PACKED.replace("LoRA on", "LoRA off")),
        ("gemma3", "packed pairs off (sliding window 8 < 24 tokens); tiled head on"),
        ("mistral_window", "packed pairs off (sliding window 8 < 24 tokens); tiled head on"),
        ("qwen3_next", "packed pairs off (layers that are not plain attention: LinearAttention"),
    ],
)
def test_the_first_step_finds_policy_and_reference_equal(run, train_flags, tmp_path, name, said):
    tokenizer, policy = tiny_tokenizer(), tmp_path / "policy"
    build(
        name,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=1024,
        **({"n_positions": 1024} if name == "gpt2" else {}),
    ).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    folder = tmp_path / "run"
    outcome = run(
        *("train", *train_flags, "--sft_model_path", policy, "--output_dir", folder),
        *("--disable_dropout", "True", "--lora_target_modules", *targets(name)),
    )
    assert outcome.code == 0, outcome.err
    assert f"fast paths  {said}" in outcome.err
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines[:2])
    assert abs(first["kl"]) < 1e-5
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    # Then it moves away, and its log-probabilities stay near those of where it was.
    assert 0 < abs(second["kl"]) < 20
    assert math.isfinite(second["loss"])


def targets(name):
    return ["c_attn", "c_proj"] if name == "gpt2" else ["q_proj", "v_proj"]
