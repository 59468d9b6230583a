"""The exception tree: what went wrong, and whose move is next.

```
MOODPOError
├── InputError (ValueError)              the caller can fix it; the command line exits with 2
│   ├── ConfigError                      flags or settings that cannot work together
│   ├── DataError                        prompts that cannot be read or used
│   ├── WeightsError                     objective weights that name or sum to the wrong thing
│   ├── RewardSpecError                  a reward that is unknown or is not a reward
│   └── ManifestError                    moodpo.json missing, damaged or of another run
├── MissingDependencyError (ImportError) the message is the install command; exits with 2
├── RewardError (RuntimeError)           a scorer failed while scoring; exits with 1
├── GenerationError (RuntimeError)       a backend failed while sampling; exits with 1
└── DivergenceError (RuntimeError)       a number became NaN or infinite; exits with 1
```

Every message names what was wrong, what was expected, what was got and the remedy.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "DivergenceError",
    "GenerationError",
    "InputError",
    "MOODPOError",
    "ManifestError",
    "MissingDependencyError",
    "RewardError",
    "RewardSpecError",
    "WeightsError",
    "one_line",
]


class MOODPOError(Exception):
    """Everything that moodpo raises on purpose."""


class InputError(MOODPOError, ValueError):
    """Something the caller passed cannot work."""


class ConfigError(InputError):
    """Flags or settings that cannot work, alone or together."""


class DataError(InputError):
    """Prompts that cannot be read or used."""


class WeightsError(InputError):
    """Objective weights with wrong names, a wrong count or impossible values."""


class RewardSpecError(InputError):
    """A reward that is unknown, or a checkpoint that is not a reward model."""


class ManifestError(InputError):
    """A `moodpo.json` that is missing, damaged, or belongs to an incompatible run."""


class MissingDependencyError(MOODPOError, ImportError):
    """An optional package is not installed; the message holds the exact command."""


class RewardError(MOODPOError, RuntimeError):
    """A scorer raised, answered the wrong count or infinities, or never gave a signal."""


class GenerationError(MOODPOError, RuntimeError):
    """A generation backend failed while sampling."""


class DivergenceError(MOODPOError, RuntimeError):
    """Loss, gradient or weights became NaN or infinite; raised before that is saved or spread."""


def one_line(error: Exception, *, at_most: int | None = None) -> str:
    """What an error says, on one line and without its full stop, to stand within a sentence.

    Args:
        error: Of any library.
        at_most: How many characters are kept; all when None.
    """
    return " ".join(str(error).split())[:at_most].rstrip(".")
