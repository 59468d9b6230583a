import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from moodpo.training.parallel import gather_rows, places, share, share_prompts
from tiny_trainers import assert_same, make_trainer, vowels


@pytest.mark.parametrize(
    ("count", "shares"),
    [(6, [[0, 1], [2, 3], [4, 5]]), (4, [[0, 1], [2], [3]]), (2, [[0], [1], []]), (0, [[]] * 3)],
)
def test_shares_are_alike_and_the_first_are_the_largest(count, shares):
    found = [share(range(count), 3, rank) for rank in range(3)]
    assert sorted(itertools.chain(*found)) == list(range(count))
    assert sorted(map(len, found), reverse=True) == [len(each) for each in found]
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert sorted(map(len, found)) == sorted(map(len, shares))


def loaders(count, world, size, **settings):
    """One loader for each of several processes, made as the Trainer makes them."""
    torch.manual_seed(0)
    split = settings.pop("split_batches", False)
    for rank in range(world):
        plain = DataLoader(list(range(count)), batch_size=size, collate_fn=list, **settings)
        prepared = prepare_data_loader(
            plain,
            num_processes=world,
            process_index=rank,
            put_on_device=False,
            split_batches=split,
            use_seedable_sampler=True,
        )
        yield share_prompts(prepared, world, rank)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 7, 12, 13, 15, 18])
def test_several_loaders_give_what_one_would(count, world, drop_last):
    (one,) = loaders(count, 1, 2 * world, drop_last=drop_last)
    several = list(loaders(count, world, 2, drop_last=drop_last))
    assert [len(each) for each in several] == [len(one)] * world
    passes = list(zip(*several, strict=True))
    assert [list(itertools.chain(*parts)) for parts in passes] == list(one)


def test_a_batch_that_is_split_is_shared_likewise():
    (one,) = loaders(15, 1, 4)
    several = list(loaders(15, 2, 4, split_batches=True))
    assert [[*a, *b] for a, b in zip(*several, strict=True)] == list(one)


@pytest.mark.parametrize("skipped", [0, 1, 3])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_later_epoch_goes_on_where_it_was_left(epoch, skipped):
    def rest(world, size):
        several = [
            skip_first_batches(loader, skipped) for loader in loaders(15, world, size, shuffle=True)
        ]
        for loader in several:
            loader.set_epoch(epoch)
        return [list(itertools.chain(*parts)) for parts in zip(*several, strict=True)]

    assert rest(2, 2) == rest(1, 4)
    assert len(rest(2, 2)) == 4 - skipped


def test_places_count_as_one_process_would():
    sizes = torch.tensor([[2, 2], [2, 1], [2, 0]])  # three processes, two passes
    assert [places(sizes, rank) for rank in range(3)] == [[0, 1, 6, 7], [2, 3, 8], [4, 5]]


def test_rows_of_any_number_are_gathered():
    parts = [torch.ones(2, 3), torch.zeros(0, 3), torch.full((1, 3), 2.0)]
    sizes = torch.tensor([len(part) for part in parts])

    def gather(rows):  # of the first process, the others being as they are
        if rows.dtype == torch.int64:
            assert rows.tolist() == [2]
            return sizes
        padded = [torch.cat([p, torch.full((2 - len(p), 3), 9.0)]) for p in parts[1:]]
        return torch.cat([rows, *padded])

    assert torch.equal(gather_rows(parts[0], gather), torch.cat(parts))
    nothing = torch.zeros(0, 3)
    assert gather_rows(nothing, lambda rows: torch.zeros(3, dtype=torch.int64)) is nothing


# ---- Several processes ----

NUMBERS = (3, 4, 6, 11, 1)
HELD_OUT = [f"Give me {number} words." for number in NUMBERS]


def number(prompts, completions, **_):
    assert completions, "a reward was asked about nothing"
    asked = [float(prompt.split()[2]) for prompt in prompts]
    return [n + 0.001 * len(text) for n, text in zip(asked, completions, strict=True)]


def numbered(count):
    return [f"Give me {i} words." for i in range(count)]


# A step is of 4 prompts: 15 leave 3 for the last one, 13 leave 1, and so none for another process.
CASES = {
    "calibrate": {
        "prompts": 15,
        "calibration_prompts": 15,
        "max_steps": 5,
    },
    "running": {
        "prompts": 13,
        "reward_normalization": "running",
        "max_steps": 5,
        "logging_steps": 2,
    },
    "evaluated": {
        "prompts": 3,
        "held_out": 5,
        "calibration_prompts": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
    },
}


def outcome(folder, *, size, accumulation, prompts, held_out=0, **settings):
    """Everything of a run that may not depend on the number of processes."""
    if held_out:
        settings["eval_dataset"] = Dataset.from_dict({"prompt": HELD_OUT[:held_out]})
    trainer = make_trainer(
        folder,
        lora=True,
        rewards=(vowels, number),
        prompts=numbered(prompts),
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size * accumulation,
        gradient_accumulation_steps=accumulation,
        **settings,
    )
    trainer.train()
    values = {n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad}
    # transformers counts an epoch in passes, and leaves the other processes out of what
    # `train_loss` adds after the last log.
    timed = ("time", "runtime", "per_second", "total_flos", "score/", "train_loss", "epoch")
    logs = [
        {k: v for k, v in entry.items() if not any(word in k for word in timed)}
        for entry in trainer.state.log_history
    ]
    return values, trainer.normalizer.state_dict(), logs


SCRIPT = """
import os, sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
from test_parallel import CASES, outcome
results = {{}}
for name, settings in CASES.items():
    for size, accumulation in {shapes!r}:
        folder = Path({folder!r}) / f"{{name}}-{{size}}"
        found = outcome(folder, size=size, accumulation=accumulation, **settings)
        results[name, size] = found
assert int(os.environ["WORLD_SIZE"]) == torch.distributed.get_world_size() == {world}
if torch.distributed.get_rank() == 0:
    torch.save(results, {folder!r} + "/results.pt")
torch.distributed.barrier()
# On a busy machine torch's threads may abort while the interpreter goes away ("terminate called
# without an active exception"); what is tested has happened by now.
os._exit(0)
"""


def run_processes(folder, *, world, shapes):
    tests = Path(__file__).parent
    script = folder / "run.py"
    paths = [str(tests), str(tests.parent)]
    script.write_text(SCRIPT.format(paths=paths, folder=str(folder), world=world, shapes=shapes))
    port = f"--rdzv-endpoint=localhost:{20000 + os.getpid() % 20000}"
    flags = [f"--nproc_per_node={world}", "--rdzv-backend=c10d", port]
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, str(script)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(folder / "results.pt")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("world", "shapes"),
    [(2, [(2, 1), (1, 2)]), pytest.param(3, [(2, 1)], marks=pytest.mark.slow)],
)
def test_several_processes_equal_one(tmp_path, world, shapes):
    results = run_processes(tmp_path, world=world, shapes=shapes)
    for name, settings in CASES.items():
        whole = world * shapes[0][0]
        one = outcome(tmp_path / name, size=whole, accumulation=1, **settings)
        for size, _ in shapes:
            several = results[name, size]
            assert_same(several[0], one[0], atol=1e-6, rtol=1e-4)
            assert several[1]["count"] == one[1]["count"]
            assert several[1]["mean"] == pytest.approx(one[1]["mean"], rel=1e-12)
            assert len(several[2]) == len(one[2])
            for ours, theirs in zip(several[2], one[2], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5, nan_ok=True), name
        assert any(v.abs().sum() > 0 for n, v in one[0].items() if "lora_B" in n)
        if held_out := settings.get("held_out"):
            means = [e["eval_objective/number/mean"] for e in one[2] if "eval_loss" in e]
            truth = sum(NUMBERS[:held_out]) / held_out  # each prompt once, and a bit for length
            assert means == [pytest.approx(truth, abs=0.1)]
            rows = (tmp_path / f"{name}-{shapes[0][0]}" / "metrics.jsonl").read_text().splitlines()
            assert sum("eval_loss" in json.loads(row) for row in rows) == 1
