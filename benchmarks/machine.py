"""What all benchmarks share: model shapes, the machine's description, interleaved timing.

Every ratio compares medians of repetitions that were taken in turn, so that a busy machine slows
all ways alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from moodpo.embedded import embedded_policy_path

VOCABULARY = 49_152
EMBEDDED = "embedded"
SHAPES: dict[str, dict[str, int]] = {
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


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    name: str, dtype: torch.dtype, *, vocabulary: int = VOCABULARY, seed: int = 0
) -> Any:
    """A model of one of `SHAPES` with random weights, or a real one from a path, on the device."""
    if name in SHAPES:
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **SHAPES[name])
        model: Any = LlamaForCausalLM(config).to(dtype)
        model.generation_config.eos_token_id = None
    else:
        path = str(embedded_policy_path()) if name == EMBEDDED else name
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.to(device_type())


def load_tokenizer() -> Any:
    """The embedded policy's: its vocabulary is that of `SHAPES`."""
    return AutoTokenizer.from_pretrained(str(embedded_policy_path()))


def spread_end_tokens(mean_length: int, vocabulary: int = VOCABULARY) -> list[int]:
    """So many end tokens that a model of random weights ends after `mean_length` on average."""
    return list(range(0, vocabulary, max(1, mean_length)))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Timing:
    """Seconds of the repetitions of one way: of the clock, and of all processors together."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def add(self, function: Callable[[], Any]) -> Any:
        """Times one repetition."""
        synchronize()
        wall, processor = time.perf_counter(), time.process_time()
        result = function()
        synchronize()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)
        return result

    @property
    def seconds(self) -> float:
        """Median of the clock."""
        return statistics.median(self.wall)


def interleave(
    ways: Mapping[str, Callable[[], Any]], *, repeats: int, warmups: int = 1
) -> dict[str, Timing]:
    """Times every way in turn, `repeats` times over, after unmeasured warm-ups."""
    timings = {name: Timing() for name in ways}
    for repeat in range(warmups + repeats):
        for name, way in ways.items():
            (timings[name] if repeat >= warmups else Timing()).add(way)
    return timings


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
