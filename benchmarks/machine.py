"""What all benchmarks share: shapes, options, the machine's description, interleaved timing.

Every ratio compares medians of repetitions that were taken in turn, so that a busy machine slows
all ways alike. Ways are compared within one process, or each in a process of its own where its
peak memory is wanted too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.utils import logging

from moodpo.models.embedded import EMBEDDED_NAME, embedded_policy_path

VOCABULARY = 49_152
WORDS = (" the", " of", " and", " house", " river", " bread", " stone", " light", " old")
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    },
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 688,
    },
    "smollm2": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
    },
}
"""Llamas with random weights: time and memory do not depend on what the weights are."""

PRECISIONS = ("float32", "bfloat16")
LENGTHS = ("equal", "mixed")
"""Whether all texts are as long as allowed, or anything from a quarter of that on."""


# ---- Options ----


def parse_options(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    *,
    repeats: int,
    quick: Mapping[str, Any],
) -> argparse.Namespace:
    """Adds the options that all benchmarks share, and parses.

    Args:
        parser: With the benchmark's own options.
        argv: The command line, by default the process's.
        repeats: Default of `--repeats`.
        quick: Defaults under `--quick`; what is given on the command line still wins.
    """
    parser.add_argument("--repeats", type=int, default=repeats, help="interleaved repetitions")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--save", metavar="FILE", help="write the measurements as JSON")
    parser.add_argument("--quick", action="store_true", help="as small as can be: does it run?")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**{"repeats": 1, **quick})
    return parser.parse_args(argv)


def add_model_option(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--model", default=default, help=f"{', '.join(SHAPES)}, {EMBEDDED_NAME}, or a path"
    )


def set_up(threads: int) -> None:
    """Torch's threads, and nothing on the terminal but the benchmark's own words."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # peft's, on old names


# ---- Models ----


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    name: str, dtype: torch.dtype, *, vocabulary: int = VOCABULARY, seed: int = 0
) -> Any:
    """A model of one of `SHAPES` with random weights, or a real one from a path, on the device."""
    if name in SHAPES:
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **SHAPES[name])
        # In its type from the start: a cast would leave its own mark on the peak of memory.
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.generation_config.eos_token_id = None
    else:
        path = str(embedded_policy_path()) if name == EMBEDDED_NAME else name
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.to(device_type())


def load_tokenizer() -> Any:
    """The embedded policy's: its vocabulary is that of `SHAPES`."""
    return AutoTokenizer.from_pretrained(str(embedded_policy_path()))


def word_prompts(count: int, num_tokens: int) -> list[str]:
    """Texts of common words, each of them one token of the embedded policy's tokenizer."""
    draw = random.Random(0)
    return ["".join(draw.choices(WORDS, k=num_tokens)).strip() for _ in range(count)]


def spread_end_tokens(mean_length: int, vocabulary: int = VOCABULARY) -> list[int]:
    """So many end tokens that a model of random weights ends after `mean_length` on average."""
    return list(range(0, vocabulary, max(1, mean_length)))


# ---- Time and memory ----


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> float:
    """Most memory in GiB since `reset_peak_memory`: of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    # Not `getrusage` where it can be helped: there, a process starts with its parent's peak.
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    if found:
        return int(found[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def reset_peak_memory() -> None:
    """Forgets the peak so far; where the kernel cannot, the process's whole past counts."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Timing:
    """Seconds of the repetitions of one way: of the clock, and of all processors together."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)  # what the repetitions returned
    peak: float = math.nan  # most memory in GiB, where the way had a process of its own

    def add(self, function: Callable[[], Any]) -> Any:
        """Times one repetition."""
        synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        result = function()
        synchronize()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)
        self.results.append(result)
        return result

    @property
    def seconds(self) -> float:
        """Median of the clock."""
        return statistics.median(self.wall)

    def record(self) -> dict[str, Any]:
        """What `save` writes of it."""
        numbers: dict[str, Any] = {
            "median": self.seconds,
            "seconds": self.wall,
            "processor": self.processor,
        }
        return numbers if math.isnan(self.peak) else {**numbers, "peak": self.peak}


def interleave(
    ways: Mapping[str, Callable[[], Any]], *, repeats: int, warmups: int = 1
) -> dict[str, Timing]:
    """Times every way in turn, `repeats` times over, after unmeasured warm-ups."""
    timings = {name: Timing() for name in ways}
    for repeat in range(warmups + repeats):
        for name, way in ways.items():
            (timings[name] if repeat >= warmups else Timing()).add(way)
    return timings


# ---- Ways in processes of their own ----


def take_turns(
    script: str,
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    passes: Sequence[str],
    repeats: int,
    warmups: int = 1,
) -> dict[str, dict[str, Timing]]:
    """Times ways that live in processes of their own, in turn, with the peak memory of each.

    Args:
        script: Run as `python SCRIPT --worker JOB` for each way; it ends in `answer_turns`.
        jobs: What each way is told, as JSON.
        passes: What each way is asked to run. Those that need least memory come first: not every
            kernel can forget a peak.
        repeats: Measured repetitions of every pass.
        warmups: Repetitions before them; their memory counts, their time does not.

    Returns:
        Timings by way and pass.
    """
    timings = {name: {each: Timing(peak=0.0) for each in passes} for name in jobs}
    workers = {name: _start_worker(script, job) for name, job in jobs.items()}
    try:
        for each in passes:
            for repeat in range(warmups + repeats):
                for name, worker in workers.items():
                    answer, timing = _ask(worker, each, name), timings[name][each]
                    timing.peak = max(timing.peak, answer["peak"])
                    if repeat >= warmups:
                        timing.wall.append(answer["wall"])
                        timing.processor.append(answer["processor"])
                        timing.results.append(answer["result"])
    finally:
        for worker in workers.values():
            worker.communicate()  # its standard input ends, and so does it
    return timings


def answer_turns(passes: Mapping[str, Callable[[], Any]], answers: Any) -> None:
    """Runs the passes that the standard input names, one per line, and says what each took.

    Args:
        passes: By name; what they return must be fit for JSON.
        answers: Where to write: the standard output, before anything else could print to it.
    """
    for line in sys.stdin:
        timing = Timing()
        reset_peak_memory()
        result = timing.add(passes[line.strip()])
        answer = {
            "wall": timing.seconds,
            "processor": timing.processor[0],
            "peak": peak_memory(),
            "result": result,
        }
        print(json.dumps(answer), file=answers, flush=True)


def _start_worker(script: str, job: Mapping[str, Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, script, "--worker", json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(script).parent,
        env={**os.environ, "PYTHONWARNINGS": "ignore::FutureWarning"},
    )


def _ask(worker: subprocess.Popen[str], each: str, name: str) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(f"{each}\n")
        worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended before its pass {each!r}: see its messages above.")
    answer: dict[str, Any] = json.loads(line)
    return answer


# ---- Reports ----


def describe_machine(threads: int | None = None) -> dict[str, Any]:
    """What a reader needs to know to read the numbers."""
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, as `benchmarks/README.md` quotes it."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print(f"\n{title}\n\n{table(header, rows)}", flush=True)


def save(path: str | None, record: Mapping[str, Any], *, threads: int | None = None) -> None:
    """Writes the measurements with the machine's description, if a path was asked for."""
    if path is not None:
        text = json.dumps({"machine": describe_machine(threads), **record}, indent=1)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + "\n", encoding="utf-8")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
