"""Generation: several completions per prompt, reproducible by seed, whatever the batching.

`SamplingConfig`, `Completion` and the `Generator` protocol work without torch; the backend loads
torch and transformers when its name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moodpo.generation.base import Completion as Completion
    from moodpo.generation.base import Generator as Generator
    from moodpo.generation.base import SamplingConfig as SamplingConfig
    from moodpo.generation.hf import HFGenerator as HFGenerator

_HOMES = {
    "Completion": "base",
    "Generator": "base",
    "HFGenerator": "hf",
    "SamplingConfig": "base",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
