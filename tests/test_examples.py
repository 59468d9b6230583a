import importlib.util
import sys
from pathlib import Path

import torch

from moodpo.conditioning.instruction import Conditioner
from tiny_policies import save_tiny_policy, tiny_model, tiny_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plain_loop_trains():
    example = load_example("plain_loop")
    model, reference = tiny_model(), tiny_model()
    before = [p.clone() for p in model.parameters()]
    history = example.train(
        model,
        reference,
        tiny_tokenizer(),
        Conditioner(objectives=("even", "long")),
        [
            lambda _, text: sum(ord(c) % 2 == 0 for c in text) / max(len(text), 1),
            lambda _, text: float(len(set(text))),
        ],
        ["ab", "cd", "ef", "gh"],
        steps=3,
        batch_size=4,
        lr=1e-2,
    )
    assert len(history) == 3
    assert abs(history[0] - 0.6931) < 1e-3  # the policy starts as its reference: ln 2
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_quickstart_trains_saves_and_steers(tmp_path, monkeypatch, capsys):
    policy = save_tiny_policy(tmp_path / "policy")
    arguments = ["--model", policy, "--output_dir", tmp_path / "out", "--max_steps", "1"]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *map(str, arguments)])
    quickstart = load_example("quickstart")

    def kind(completions, **_):  # a policy without training writes none of the words
        return [float(len(set(text))) for text in completions]

    monkeypatch.setattr(quickstart, "kind", kind)
    quickstart.main()
    assert (tmp_path / "out" / "moodpo.json").is_file()
    assert "{'kind': 0.0, 'short': 1.0}" in capsys.readouterr().out
