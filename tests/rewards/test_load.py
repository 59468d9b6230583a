from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from moodpo.errors import RewardError, RewardSpecError
from moodpo.rewards import FunctionReward, ModelReward, RewardPanel, load_rewards, rebuild_specs
from moodpo.rewards.presets import PRESETS
from tiny_checkpoints import (
    install_in_hub_cache,
    tiny_gpt2_tokenizer,
)


def length(prompts: list[str], completions: list[str], **columns: Any) -> list[int]:
    return [len(text) for text in completions]


def test_every_kind_of_reward_in_one_panel(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["harmless"])
    rewards = load_rewards(
        [f"{checkpoints['helpful']}#like=helpful", model, length, "brevity"],
        names=[None, "safe", None, "short"],
    )
    panel = RewardPanel(rewards)
    assert panel.names == ("helpful", "safe", "length", "short")
    scores = panel.score(["Hi", "Hi"], ["Ok.", "The ice is good."])
    assert scores.shape == (2, 4)
    assert torch.isfinite(scores).all()
    assert scores[:, 2].tolist() == [3, 16]
    alone = load_rewards([str(checkpoints["harmless"])])[0].score(["Hi"], ["Ok."])
    torch.testing.assert_close(scores[:1, 1], alone)


def test_presets_of_one_checkpoint_share_the_model(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["faithful"]
    a, b, other = load_rewards(
        [
            f"a={path}#like=faithful",
            f"b={path}#like=faithful&score=margin",
            f"other={checkpoints['humor']}#like=humor",
        ]
    )
    assert isinstance(a, ModelReward)
    assert isinstance(b, ModelReward)
    assert isinstance(other, ModelReward)
    assert a.checkpoint is b.checkpoint is not other.checkpoint


def test_a_rewards_own_description_loads_it_again(checkpoints: dict[str, Path]) -> None:
    panel = RewardPanel(
        load_rewards([f"x={checkpoints['faithful']}#like=faithful&score=margin", "brevity"])
    )
    again = RewardPanel(load_rewards(rebuild_specs(json.loads(json.dumps(panel.describe())))))
    assert again.describe() == panel.describe()
    assert torch.equal(again.score(["Hi"], ["Ok."]), panel.score(["Hi"], ["Ok."]))


def test_models_passed_as_objects(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["helpful"]).train()
    (reward,) = load_rewards([model], processing_classes=[tiny_gpt2_tokenizer()])
    assert reward.name == "helpful"  # the last part of the path it came from
    description = reward.describe()
    assert (description["spec"], description["revision"]) == (None, None)  # trained since, perhaps
    assert not model.training
    assert model.config.pad_token_id == 263
    with pytest.raises(RewardSpecError, match="was a Python object"):
        rebuild_specs([description])
    (nice,) = load_rewards([model], names=["nice#like=harmless"])
    assert (nice.name, nice.describe()["input"]) == ("nice", "hh")
    with pytest.raises(RewardSpecError, match="an option cannot be 'lable'"):
        load_rewards([model], names=["nice#lable=1"])


def test_objects_that_are_no_reward_are_refused(checkpoints: dict[str, Path]) -> None:
    with torch.random.fork_rng(devices=[]):
        causal = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1))
        linear = torch.nn.Linear(2, 1)
    with pytest.raises(RewardSpecError, match=r"causal language model \(GPT2LMHeadModel\)"):
        load_rewards([causal], processing_classes=[tiny_gpt2_tokenizer()])
    with pytest.raises(RewardSpecError, match="is a Linear, expected a transformers sequence"):
        load_rewards([linear])
    with pytest.raises(RewardSpecError, match="A reward cannot be a int"):
        load_rewards([3])  # type: ignore[list-item]


def test_lists_that_do_not_match_are_refused() -> None:
    with pytest.raises(RewardSpecError, match="2 rewards, 1 names and 2 processing"):
        load_rewards(["brevity", "detail"], names=["a"])
    with pytest.raises(RewardSpecError, match="2 rewards are named 'brevity'"):
        load_rewards(["brevity", "brevity"])
    with pytest.raises(RewardSpecError, match="Pass a list"):
        load_rewards("brevity")
    with pytest.raises(RewardSpecError, match="batch size is 0"):
        load_rewards(["brevity"], batch_size=0)


def test_reward_objects_pass_through_under_their_own_name() -> None:
    reward = FunctionReward(length, name="size")
    assert load_rewards([reward, "brevity"])[0] is reward
    with pytest.raises(RewardSpecError, match="named 'size', so it cannot be named 'other'"):
        load_rewards([reward], names=["other"])


def test_a_model_that_overflows_is_an_error_not_a_missing_score(
    checkpoints: dict[str, Path],
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["humor"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["humor"])
    for value, message in ((math.nan, "answered NaN for row 0"), (math.inf, "answered inf for")):
        model.classifier.bias.data[1] = value
        (reward,) = load_rewards([model], names=["joke#label=1"], processing_classes=[tokenizer])
        with pytest.raises(RewardError, match=f"'joke' {message}"):
            reward.score(["Hi"], ["Ok."])


def test_a_failing_forward_pass_names_the_reward(checkpoints: dict[str, Path]) -> None:
    (reward,) = load_rewards([f"joke={checkpoints['humor']}#like=humor"])
    assert isinstance(reward, ModelReward)
    reward.checkpoint.model.distilbert.embeddings.word_embeddings = None
    with pytest.raises(RewardError, match="'joke' failed while scoring: TypeError") as info:
        reward.score(["Hi"], ["Ok."])
    assert isinstance(info.value.__cause__, TypeError)


# --- by name, from a Hub cache, without a network -------------------------------------------------

SCRIPT = """
import json, sys
import torch
from moodpo.errors import RewardError, RewardSpecError
from moodpo.rewards import RewardPanel, load_rewards, rebuild_specs

names, prompts, responses = json.load(sys.stdin)
panel = RewardPanel(load_rewards(names))
scores = panel.score(prompts, responses)
again = RewardPanel(load_rewards(rebuild_specs(panel.describe())[:1]))
refusals = []
for spec in ("org/causal", "org/absent", "helpful@" + 40 * "0"):
    try:
        load_rewards([spec])
    except RewardSpecError as error:
        refusals.append(str(error))
print(json.dumps({
    "scores": scores.tolist(),
    "again": again.score(prompts, responses)[:, 0].tolist(),
    "descriptions": panel.describe(),
    "refusals": refusals,
}))
"""


def test_presets_by_name_from_a_hub_cache(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    commits = {
        name: install_in_hub_cache(path, PRESETS[name].checkpoint, hub)
        for name, path in checkpoints.items()
    }
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path / "causal")
    install_in_hub_cache(tmp_path / "causal", "org/causal", hub)
    prompts, responses = ["Hi", "Tell me a joke."], ["Ok.", "The ice is good."]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([list(checkpoints), prompts, responses]),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)

    local = RewardPanel(load_rewards([f"{n}={p}#like={n}" for n, p in checkpoints.items()]))
    torch.testing.assert_close(
        torch.tensor(answer["scores"]), local.score(prompts, responses), rtol=1e-5, atol=1e-5
    )
    assert answer["again"] == [row[0] for row in answer["scores"]]
    assert {d["name"]: d["revision"] for d in answer["descriptions"]} == commits
    assert all(d["kind"] == "preset" and d["spec"] == d["name"] for d in answer["descriptions"])
    causal, absent, pinned = answer["refusals"]
    assert "org/causal is a causal language model" in causal
    assert "Cannot load the reward model 'org/absent'" in absent
    assert "Cannot load the reward model 'Ray2333/gpt2-large-helpful-reward_model'" in pinned
