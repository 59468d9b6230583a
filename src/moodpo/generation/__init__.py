"""Generation: several completions per prompt, reproducible by seed, whatever the batching.

`SamplingConfig`, `Completion` and the `Generator` protocol work without torch; the backend loads
torch and transformers when its name is used.
"""

from typing import TYPE_CHECKING

from moodpo._lazy import lazy

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

__getattr__ = lazy(__name__, _HOMES)
