"""The benchmark runs: every method, on a tiny policy."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from moodpo.baselines import load_baseline
from moodpo.evaluation.results import SweepResult
from tiny_policies import save_tiny_policy

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "compare_methods.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("compare_methods", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "compare_methods", module)
        spec.loader.exec_module(module)
        yield module


def small(folder, *more):
    sizes = {
        "--completions": 16,
        "--max_new_tokens": 8,
        "--batch_size": 4,
        "--num_prompts": 3,
        "--calibration_prompts": 4,
        "--ric_epochs": 1,
        "--lora_layers": 1,
        "--dtype": "float32",
        "--model": save_tiny_policy(folder / "tiny"),
        "--output_dir": folder / "out",
    }
    # The default's rewards count words, of which these policies write none: every pair would tie.
    rewards = ["--reward_models", "tiny_trainers:vowels", "tiny_trainers:capitals"]
    return ["--quick", *(str(part) for pair in sizes.items() for part in pair), *rewards, *more]


def test_every_method_is_trained_asked_and_compared(benchmark, tmp_path):
    benchmark.main(small(tmp_path))
    out = tmp_path / "out"
    methods = json.loads((out / "methods.json").read_text())
    cost = {name: took["completions"] for name, took in methods["training"].items()}
    assert cost == {"prompting": 0} | dict.fromkeys(
        ("moodpo", "mo-odpo", "soups", "fixed", "ric"), 16
    )
    comparison = json.loads((out / "comparison.json").read_text())
    assert comparison["first"] == "moodpo"
    assert {p["name"] for p in comparison["policies"]} == set(cost)
    table = (out / "methods.md").read_text()
    assert all(f"| {name} | {count} |" in table for name, count in cost.items())
    base = SweepResult.load(out / "prompting" / "results.json")
    for name in cost:
        result = SweepResult.load(out / name / "results.json")
        assert result.seeds == base.seeds  # common random numbers
        assert (result.normalization.mean == base.normalization.mean).all()
        assert (result.baseline.rewards == base.rewards).all()
    assert load_baseline(out / "soups").kind == "soups"


def test_training_ends_when_its_minutes_are_over(benchmark, tmp_path):
    bench = benchmark.open_bench(benchmark.parse_arguments(small(tmp_path, "--minutes", "1e-6")))
    soup = benchmark.METHODS["soups"](bench)
    assert soup.record.training["completions"] == 2 * 8  # one step of each policy
    benchmark.METHODS["moodpo"](bench)
    assert bench.took["moodpo"]["completions"] == 8
