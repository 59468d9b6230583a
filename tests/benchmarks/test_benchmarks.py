"""The benchmarks run, and count what they say. Nothing here asserts on time."""

import argparse
import importlib
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from tiny_policies import save_tiny_policy, tiny_model

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def imported(name):
    # The scripts import each other by plain name, as they do when they are run.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)


machine = imported("machine")
LIBRARIES = {"machine", "fronts"}  # of the scripts, and none themselves


def run(name, folder, capsys, *more):
    """The rows of every table that a quick run prints, and what it saves."""
    path = folder / f"{name}.json"
    imported(name).main(["--quick", "--save", str(path), *more])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line]
    tables = [row for row in rows if len(row) > 1 and set(row) != {"---"}]
    record = json.loads(path.read_text())
    assert record["machine"]["threads"] == 1
    return tables, record[name]


def all_numbers(record, *names):
    """Whatever stands under the given names, anywhere in the record."""
    if isinstance(record, dict):
        for name, value in record.items():
            if name in names:
                yield from value if isinstance(value, list) else [value]
            else:
                yield from all_numbers(value, *names)
    elif isinstance(record, list):
        for value in record:
            yield from all_numbers(value, *names)


def finite_and_positive(record, *names):
    numbers = list(all_numbers(record, *names))
    return bool(numbers) and all(math.isfinite(number) and number > 0 for number in numbers)


# ---- What all share ----


def test_a_timing_is_the_median_of_its_repetitions():
    timing = machine.Timing(wall=[3.0, 1.0, 2.0], processor=[1.0, 1.0, 1.0], results=[5, 6, 7])
    assert timing.seconds == 2.0
    assert timing.record() == {
        "median": 2.0,
        "seconds": [3.0, 1.0, 2.0],
        "processor": [1.0, 1.0, 1.0],
    }
    timing.peak = 0.5
    assert timing.record()["peak"] == 0.5


def test_ways_take_turns_and_warm_ups_are_not_measured():
    calls = []
    timings = machine.interleave(
        {"a": lambda: calls.append("a") or len(calls), "b": lambda: calls.append("b")}, repeats=2
    )
    assert calls == ["a", "b"] * 3
    assert timings["a"].results == [3, 5]
    assert len(timings["b"].wall) == len(timings["b"].processor) == 2


WORKER = """
import json, sys
job = json.loads(sys.argv[2])
for number, line in enumerate(sys.stdin):
    if number == job["dies_after"]:
        break
    answer = {"wall": job["wall"] + number, "processor": 1, "peak": 9 - number, "result": line}
    print(json.dumps(answer), flush=True)
"""


def write_worker(folder):
    path = folder / "worker.py"
    path.write_text(WORKER)
    return str(path)


def test_processes_take_turns(tmp_path):
    jobs = {"a": {"wall": 10, "dies_after": None}, "b": {"wall": 20, "dies_after": None}}
    timings = machine.take_turns(
        write_worker(tmp_path), jobs, passes=("first", "second"), repeats=2, warmups=1
    )
    assert timings["a"]["first"].wall == [11, 12]
    assert timings["b"]["second"].wall == [24, 25]
    assert timings["b"]["second"].results == ["second\n"] * 2
    assert timings["a"]["first"].peak == 9  # the warm-up's memory counts
    assert timings["a"]["second"].peak == 6


def test_a_process_that_ends_too_soon_is_named(tmp_path):
    jobs = {"a": {"wall": 1, "dies_after": 1}}
    with pytest.raises(SystemExit, match="a ended before its pass 'first'"):
        machine.take_turns(write_worker(tmp_path), jobs, passes=("first",), repeats=1)


@pytest.mark.skipif(
    torch.cuda.is_available() or not sys.platform.startswith("linux"), reason="Linux's own peaks"
)
def test_peak_memory_is_forgotten_and_found_again():
    size = 256 * 2**20
    block = bytearray(size)
    high = machine.peak_memory()
    del block
    machine.reset_peak_memory()
    if machine.peak_memory() > high - size / 2**31:
        pytest.skip("this kernel does not forget peaks")
    low = machine.peak_memory()
    block = bytearray(size)
    assert machine.peak_memory() - low > 0.9 * size / 2**30
    del block


def test_a_quick_run_changes_defaults_but_nothing_that_is_given():
    def parse(*argv):
        parser = argparse.ArgumentParser()
        parser.add_argument("--size", type=int, default=100)
        return machine.parse_options(parser, argv, repeats=5, quick={"size": 1})

    assert (parse().size, parse().repeats) == (100, 5)
    assert (parse("--quick").size, parse("--quick").repeats) == (1, 1)
    assert (parse("--quick", "--size", "7").size, parse("--size", "7").repeats) == (7, 5)


def test_end_tokens_are_as_frequent_as_asked_for():
    assert machine.spread_end_tokens(4, 12) == [0, 4, 8]
    assert machine.spread_end_tokens(0, 3) == [0, 1, 2]


def test_tables_are_markdown():
    assert machine.table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


# ---- Log-probabilities ----


def test_all_ways_give_the_same_log_probabilities():
    logps = imported("logps")
    model = tiny_model()
    pairs = [((1, 2, 3), ((4, 5), (6,))), ((7,), ((8, 9, 10), (11, 12)))]
    expected = logps.full(model, logps.collate_full(pairs))
    for way in ("pairs", "sequences"):
        batch = logps.collate_tiled(way, pairs)
        found = logps.tiled(model, batch, linear_head=True, entropies=False)
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_log_probabilities_run(tmp_path, capsys):
    table, record = run("logps", tmp_path, capsys)
    assert [row[:3] for row in table[1:]] == [
        ["float32", "mixed", "reference"],
        ["float32", "mixed", "train"],
    ]
    (case,) = record["cases"]
    assert set(case["ways"]) == {"pairs", "sequences", "full"}
    assert finite_and_positive(case, "median", "seconds", "peak")
    sums = torch.tensor([way["train"]["logps"] for way in case["ways"].values()])
    torch.testing.assert_close(sums, sums[:1].expand_as(sums), rtol=1e-4, atol=1e-3)


# ---- Roofline ----


def small_size():
    roofline = imported("roofline")
    return roofline, roofline.Size(
        trunk=10,
        adapters=4,
        hidden=3,
        vocabulary=5,
        layers=2,
        query_width=6,
        key_width=2,
        bytes_per_number=2,
    )


def test_a_packed_pair_counted_by_hand():
    roofline, _ = small_size()
    # Prompt of 3: 1 + 2 + 3 places. One token of each completion is read: it sees 3, and itself.
    assert roofline.packed(3, 2) == (5, 6 + 2 * 4)


def test_least_work_counted_by_hand():
    roofline, size = small_size()
    prefill, step = roofline.generation(size, 1, 3, 2)
    assert prefill == roofline.Work(2 * 14 * 3 + 4 * 6 * 2 * 6 + 2 * 15, 29 * 2)
    # Two sequences of 4 tokens, the new one included; keys and values of 2 layers, 2 wide.
    assert step == roofline.Work(2 * (2 * 29 + 4 * 6 * 2 * 4), 29 * 2 + 2 * 2 * (2 * 2) * 4 * 2)
    attention, head = 4 * 6 * 2 * 14, 2 * 15 * 4
    expected = roofline.Work(2 * 10 * 5 + attention + head, 25 * 2)
    assert roofline.reference(size, 1, 3, 2) == expected
    layers = 4 * 14 * 5 + 2 * 4 * 5
    expected = roofline.Work(3 * (layers + 3 * attention + 2 * head), 2 * 29 * 2)
    assert roofline.training(size, 3, 3, 2) == expected


def test_the_bound_is_the_slower_of_computing_and_reading():
    roofline, _ = small_size()
    assert roofline.Work(10, 4).seconds(5, 1) == 4
    assert roofline.Work(10, 1).seconds(5, 1) == 2


def test_a_model_is_counted_by_its_linear_layers():
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config)
    size = imported("roofline").size_of(model, bytes_per_number=4)
    block = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64  # q, k, v, o; gate, up, down
    adapters = 4 * (64 + 48 + 48 + 64 + 3 * 96)  # r * (inputs + outputs)
    assert (size.trunk, size.adapters) == (2 * block, 2 * adapters)
    assert (size.hidden, size.vocabulary) == tuple(reversed(model.lm_head.weight.shape))
    assert (size.layers, size.query_width, size.key_width) == (2, 32, 16)


def test_the_roofline_runs(tmp_path, capsys):
    table, record = run("roofline", tmp_path, capsys)
    phases = ["generate", "reference", "train", "all three"]
    assert [row[0] for row in table[-4:]] == phases
    assert [entry["phase"] for entry in record["phases"]] == phases
    assert finite_and_positive(
        record, "float32", "bfloat16", "bandwidth", "operations", "bytes", "bound", "median"
    )


# ---- Scaling ----


@given(st.floats(-2, 2), st.floats(0.1, 10))
def test_the_exponent_of_a_power_law_is_found(power, factor):
    sizes = [1, 2, 5, 10]
    seconds = [factor * size**power for size in sizes]
    assert imported("scaling").exponent(sizes, seconds) == pytest.approx(power, abs=1e-6)


def test_an_exponent_computed_by_hand():
    # log2: sizes 0, 1, 2 and seconds 0, 0, 3; slope = (1 * 0 + 1 * 3) / 2.
    assert imported("scaling").exponent([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)


def test_prompts_are_as_long_for_any_number_of_objectives():
    scaling = imported("scaling")
    tokenizer = machine.load_tokenizer()
    for count in (2, 8):
        job = {"objectives": count, "prompts": 2, "prompt_tokens": 96}
        conditioner = scaling.Conditioner(objectives=[f"o{k}" for k in range(count)])
        prompts = scaling.make_prompts(job, conditioner, tokenizer)
        weights = [1 / count] * count
        assert [len(conditioner.encode(tokenizer, p, weights)) for p in prompts] == [96, 96]
    with pytest.raises(SystemExit, match="alone has more than"):
        scaling.make_prompts({**job, "prompt_tokens": 20}, conditioner, tokenizer)


@pytest.mark.slow
def test_scaling_runs(tmp_path, capsys):
    table, record = run("scaling", tmp_path, capsys)
    names = ["objectives", "prompts", "prompt_tokens", "new_tokens", "vocabulary"]
    assert [row[0] for row in table[1:]] == names
    assert finite_and_positive(record, "median", "seconds", "size")
    for name in names:
        assert len(record[name]["sizes"]) == 2
        assert math.isfinite(record[name]["exponent"])


# ---- Rollouts, scoring, whole steps ----


def test_rollouts_run(tmp_path, capsys):
    table, record = run("rollout", tmp_path, capsys)
    assert [row[0] for row in table[1:]] == ["HFGenerator", "model.generate"]
    assert [way["tokens"] for way in record["ways"].values()] == [[2 * 2 * 4]] * 2
    assert finite_and_positive(record["ways"], "median", "seconds", "tokens_per_second")


@pytest.mark.slow
def test_scoring_runs_and_all_ways_agree(tmp_path, capsys):
    table, record = run("scoring", tmp_path, capsys)
    cases = [["models", "mixed"], ["heads", "mixed"], ["labels", "mixed"]]
    assert [row[:2] for row in table[1:]] == cases
    for case in record["cases"]:
        assert set(case["ways"]) == {"panel", "again", "TRL"}
        assert case["difference"] < 1e-5
    assert finite_and_positive(record, "median", "seconds", "processor")


@pytest.mark.slow
def test_whole_steps_run(tmp_path, capsys):
    table, (record,) = run("end_to_end", tmp_path, capsys)
    assert [row[:2] for row in table[1:]] == [["user", "bfloat16"]]
    assert set(record["result"]) == {"moodpo", "trl"}
    assert finite_and_positive(record["result"], "median", "seconds", "peak")


# ---- The page ----


def test_the_pages_name_every_script_with_its_results_and_no_flag_that_is_gone():
    page = (BENCHMARKS / "README.md").read_text()
    results = (BENCHMARKS.parent / "docs" / "results.md").read_text()
    sources = {path.name: path.read_text() for path in BENCHMARKS.glob("*.py")}
    known = {flag for text in sources.values() for flag in re.findall(r"--[\w-]+", text)}
    assert set(re.findall(r"(?<![\w!-])--[a-z]\w*", page)) <= known | {"--help"}
    assert set(re.findall(r"\b\w+\.py\b", page)) <= set(sources)
    for name in (path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in LIBRARIES):
        assert f"`{name}.py`" in page
        assert results.count(f"<!-- recorded: {name} -->") == 1


# ---- Ablation ----


@pytest.fixture
def ablation_flags(tmp_path):
    sizes = {
        "--model": save_tiny_policy(tmp_path / "tiny"),
        "--output_dir": tmp_path / "out",
        "--dtype": "float32",
    }
    # The default's rewards count words, of which such a policy writes none: every pair would tie.
    rewards = ["--reward_models", "tiny_trainers:vowels", "tiny_trainers:capitals"]
    return ["--quick", *(str(part) for pair in sizes.items() for part in pair), *rewards]


def test_every_arm_can_be_trained_with_all_its_pairs_in_as_many_steps(tmp_path):
    compare = imported("compare_methods")
    args = imported("ablation").parse_arguments(["--output_dir", str(tmp_path)])
    for name, settings in imported("ablation").ARMS.items():
        config = compare.training_config(args, output_dir=str(tmp_path), max_steps=1, **settings)
        assert args.batch_size * 2 % config.num_generations == 0, name
        # No arm differs from the others in how many steps it takes.
        assert compare.completions_per_step(args, settings) == 24, name


def test_an_ablation_asks_at_equal_completions_and_at_equal_time(tmp_path, capsys, ablation_flags):
    ablation = imported("ablation")
    ablation.main([*ablation_flags, "--arms", "mo-odpo", "spread"])
    printed = capsys.readouterr().out
    runs = {p.name: json.loads(p.read_text()) for p in (tmp_path / "out").glob("*-*-0.json")}
    assert runs.keys() == {"mo-odpo-grouped-0.json", "spread-grouped-0.json"}
    for record in runs.values():
        reading = {name: p for p in record["points"] for name in p["of"]}
        assert reading["8 completions"]["completions"] == 8
        assert reading["16 completions"]["completions"] == 16
        assert reading["0.01 minutes"]["seconds"] >= 0.6
        for point in record["points"]:
            assert point["hypervolume"]["value"] >= 0
            assert point["hypervolume_from_0"]["value"] >= 0
            assert [len(row) for row in point["answers"]] == [2] * len(point["weights"])
    for point in runs["mo-odpo-grouped-0.json"]["points"]:
        assert point["entropy"] > 0
        assert math.isfinite(point["kl"])
    assert "After 16 completions" in printed
    assert "After 0.01 minutes" in printed
    assert "| spread | grouped | 1 | 16 |" in printed
    assert not list((tmp_path / "out").glob("*.claim"))
    # What is there is not run again.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*-*-0.json")}
    picture = tmp_path / "fronts.png"
    ablation.main([*ablation_flags, "--arms", "mo-odpo", "--picture", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_soups_divide_the_completions_of_an_ablation(tmp_path, capsys, ablation_flags):
    imported("ablation").main([*ablation_flags, "--arms", "soups"])
    record = json.loads((tmp_path / "out" / "soups-grouped-0.json").read_text())
    (point,) = record["points"]
    assert point["of"] == ["16 completions"]
    assert point["completions"] == 16
    assert "kl" not in point  # there is no one policy that was trained
    assert "| soups | grouped | 1 | 16 |" in capsys.readouterr().out


def test_a_run_is_claimed_by_one_process(tmp_path):
    claimed = imported("ablation").claimed
    path = tmp_path / "run.json"
    with claimed(path) as first, claimed(path) as second:
        assert (first, second) == (True, False)
    path.write_text("{}")
    with claimed(path) as done:
        assert not done


def test_intervals_over_seeds_by_hand():
    over_seeds = imported("ablation").over_seeds
    assert over_seeds([0.5]) == "0.50"
    assert over_seeds([0.4, 0.6]) == "0.50"  # an interval of two values says nothing
    # The standard deviation is 0.1, and 4.30 * 0.1 / sqrt(3) = 0.248.
    assert over_seeds([0.4, 0.5, 0.6]) == "0.50 [0.25, 0.75]"


def test_settings_of_all_arms_are_read_as_json():
    read = imported("ablation").parse_setting
    assert read("num_generations=8") == ("num_generations", 8)
    assert read("scalarization=chebyshev") == ("scalarization", "chebyshev")


def test_the_learning_rate_ends_with_the_last_reading_unless_time_is_read():
    ablation = imported("ablation")
    args = ablation.parse_arguments(["--completions", "96", "470", "--batch_size", "24"])
    schedule = ablation.schedule(args, per_step=48)
    assert schedule["max_steps"] == 10
    assert schedule["lr_scheduler_kwargs"]["num_decay_steps"] == 3
    args = ablation.parse_arguments(["--completions", "96", "--processor_minutes", "1"])
    assert "lr_scheduler_type" not in ablation.schedule(args, per_step=48)
