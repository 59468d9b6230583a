"""What docs/baselines.md shows runs."""

import re
from pathlib import Path

from peft import LoraConfig

from baselines.tiny_baselines import PROMPTS, config, load_base, options
from moodpo.evaluation.sweep import evaluate_policy
from moodpo.rewards import RewardPanel, load_rewards
from tiny_policies import tiny_tokenizer

DOCUMENT = Path(__file__).parents[2] / "docs" / "baselines.md"


def test_the_documented_snippet_runs(tmp_path, monkeypatch):
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {
        "model": load_base(tmp_path / "base"),
        "tokenizer": tiny_tokenizer(),
        "dataset": options(tmp_path)["train_dataset"],
        "args": config(tmp_path / "run", max_steps=1, max_new_tokens=48),
        "prompts": PROMPTS[:2],
        "panel": RewardPanel(load_rewards(["brevity", "detail"])),
        "LoraConfig": LoraConfig,
        "evaluate_policy": evaluate_policy,
    }
    exec(snippet, names)
    assert names["result"].objectives == ("brevity", "detail")
    assert names["result"].num_weights == 11
