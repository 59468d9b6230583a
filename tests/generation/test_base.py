from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moodpo.errors import ConfigError, GenerationError
from moodpo.generation.base import Completion, Generator, SamplingConfig, check_request


def test_sampling_defaults_are_the_models_own_distribution() -> None:
    config = SamplingConfig(max_new_tokens=5)
    assert (config.min_new_tokens, config.temperature, config.top_p, config.top_k) == (0, 1, 1, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_new_tokens": 4, "min_new_tokens": -1}, "min_new_tokens"),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "max_new_tokens"),
        ({"max_new_tokens": 4, "temperature": -0.1}, "temperature"),
        ({"max_new_tokens": 4, "temperature": 1e-9}, "greedy"),
        ({"max_new_tokens": 4, "temperature": float("inf")}, "temperature"),
        ({"max_new_tokens": 4, "temperature": float("nan")}, "temperature"),
        ({"max_new_tokens": 4, "top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 4, "top_p": 1.1}, "top_p"),
        ({"max_new_tokens": 4, "top_p": float("nan")}, "top_p"),
        ({"max_new_tokens": 4, "top_k": -1}, "top_k"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SamplingConfig(**settings)  # type: ignore[arg-type]


@given(
    st.integers(1, 10_000),
    st.floats(1e-4, 100.0),
    st.floats(0.0, 1.0, exclude_min=True),
    st.integers(0, 100_000),
)
def test_good_settings_are_kept(tokens: int, temperature: float, top_p: float, top_k: int) -> None:
    config = SamplingConfig(
        max_new_tokens=tokens, temperature=temperature, top_p=top_p, top_k=top_k
    )
    assert (config.max_new_tokens, config.temperature) == (tokens, temperature)
    assert (config.top_p, config.top_k) == (top_p, top_k)


def test_config_and_completion_are_frozen() -> None:
    with pytest.raises(AttributeError):
        SamplingConfig(max_new_tokens=5).top_k = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Completion((1,), True).finished = False  # type: ignore[misc]


@pytest.mark.parametrize(
    ("prompts", "count", "seeds", "named"),
    [
        ([(1,), ()], 2, [0, 1], "prompt 1"),
        ([(1,)], 2, [0, 1], "1 prompts but 2 seeds"),
        ([(1,)], 0, [0], "num_completions"),
    ],
)
def test_impossible_requests_are_refused(
    prompts: list[tuple[int, ...]], count: int, seeds: list[int], named: str
) -> None:
    with pytest.raises(GenerationError, match=named):
        check_request(prompts, num_completions=count, seeds=seeds)


def test_the_protocol_knows_a_backend_by_its_methods() -> None:
    class Sampler:
        def generate(self) -> None: ...

    class Backend(Sampler):
        def sync(self, version: int) -> None: ...
        def close(self) -> None: ...

    assert isinstance(Backend(), Generator)
    assert not isinstance(Sampler(), Generator)


def test_settings_load_without_torch() -> None:
    script = (
        "import sys; from moodpo.generation import SamplingConfig, Completion, Generator; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
