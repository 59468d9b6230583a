"""Results of a sweep: one record in memory, one versioned JSON file on disk.

Knows nothing of models, of how the numbers were obtained or of what they mean: it holds them,
checks their shapes and moves them to and from `results.json` without loss. Shapes: W weight
vectors of a sweep, N texts (one per prompt), K objectives, H held-out rewards.

`results.json`, version 1, every key present (but `finished`, in files from before there was one):

| key | content |
|---|---|
| `schema`, `version` | `"moodpo.results"`, `1` |
| `objectives` | K names, in the order of every K axis |
| `policy` | `name`, `path`, `kind`, `lineage` of what was evaluated |
| `data` | `source`, `num_prompts`, `sha256` of the prompts |
| `weights` | `[W][K]` requested weights |
| `prompts`, `seeds` | N texts and N integers; seed n is used under every weight |
| `sampling` | the fields of `SamplingConfig` |
| `rewards` | `[W][N][K]` raw, higher is better, `null` where a reward gave no score |
| `completions` | `[W][N]` texts |
| `lengths` | `[W][N]` sampled tokens, the token that ends an answer counted; of a policy that \
answers plain texts, tokens of the text (words when not countable) |
| `finished` | `[W][N]` whether an answer ended by itself (`true`) or was cut, or `null` |
| `kl` | `[W][N]` per-sequence estimate of the KL to the reference in nats, or `null` |
| `held_out` | `{"names": [H], "rewards": [W][N][H]}` of rewards never trained on, or `null` |
| `baseline` | `{"name", "rewards": [W][N][K], "completions": [W][N]}` and, when known, `lengths` \
and `finished` `[W][N]` and `held_out_rewards` `[W][N][H]`: the base model, or `null` |
| `normalization` | `{"mean": [K], "std": [K], "source": text}` |
| `reference_point` | `[K]` in normalized units |
| `metrics`, `steerability` | described in `moodpo.evaluation.statistics` and `.steerability` |
| `warnings` | texts for the reader of the report |
| `timings`, `versions` | seconds per phase; package name to version |

NaN is written as `null`; a `null` inside `metrics`, `steerability` or an array reads back as NaN.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from moodpo.errors import ManifestError
from moodpo.files import write_text

__all__ = [
    "SCHEMA",
    "VERSION",
    "Baseline",
    "FloatArray",
    "HeldOut",
    "Normalization",
    "SweepResult",
    "mean_over_prompts",
]

SCHEMA = "moodpo.results"
VERSION = 1

FloatArray = NDArray[np.float64]
Texts = tuple[tuple[str, ...], ...]

_KEYS = (
    *("objectives", "policy", "data", "weights", "prompts", "seeds", "sampling", "rewards"),
    *("completions", "lengths", "finished", "kl", "held_out", "baseline", "normalization"),
    *("reference_point", "metrics", "steerability", "warnings", "timings", "versions"),
)
_LATER_KEYS = ("finished",)  # files from before there was one are read as well


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Rewards that training never saw: the check against over-optimizing the trained ones."""

    names: tuple[str, ...]  # H
    rewards: FloatArray  # [W, N, H] raw

    def __post_init__(self) -> None:
        _freeze_fields(self, "rewards")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Baseline:
    """The base model under the same prompts, weights and seeds."""

    name: str
    rewards: FloatArray  # [W, N, K] raw
    completions: Texts  # W x N
    lengths: NDArray[np.int64] | None = None  # [W, N] completion tokens
    held_out_rewards: FloatArray | None = None  # [W, N, H] raw, by the names of `held_out`
    finished: NDArray[np.bool_] | None = None  # [W, N] ended by itself

    def __post_init__(self) -> None:
        _freeze_fields(self, "rewards", "held_out_rewards")
        _freeze_fields(self, "lengths", dtype=np.int64)
        _freeze_fields(self, "finished", dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Normalization:
    """Raw rewards to normalized units: `(raw - mean) / std`, per objective."""

    mean: FloatArray  # [K]
    std: FloatArray  # [K], above 0
    source: str  # what they were computed from, for the reader

    def __post_init__(self) -> None:
        _freeze_fields(self, "mean", "std")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepResult:
    """Everything that an evaluation measured, in read-only arrays: float64, lengths int64.

    Raises:
        ManifestError: If the shapes disagree, a name repeats or a weight is not finite.
    """

    objectives: tuple[str, ...]  # K
    policy: Mapping[str, Any]
    data: Mapping[str, Any]
    weights: FloatArray  # [W, K]
    prompts: tuple[str, ...]  # N
    seeds: tuple[int, ...]  # N
    sampling: Mapping[str, Any]
    rewards: FloatArray  # [W, N, K] raw, NaN where a reward gave no score
    completions: Texts  # W x N
    lengths: NDArray[np.int64]  # [W, N] completion tokens
    finished: NDArray[np.bool_] | None = None  # [W, N] ended by itself rather than at the limit
    kl: FloatArray | None = None  # [W, N] nats
    held_out: HeldOut | None = None
    baseline: Baseline | None = None
    normalization: Normalization
    reference_point: FloatArray  # [K] in normalized units
    metrics: Mapping[str, Any] = field(default_factory=dict)
    steerability: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _freeze_fields(self, "weights", "rewards", "kl", "reference_point")
        _freeze_fields(self, "lengths", dtype=np.int64)
        _freeze_fields(self, "finished", dtype=np.bool_)
        _check_shapes(self)

    @property
    def num_weights(self) -> int:
        """W."""
        return len(self.weights)

    @property
    def num_prompts(self) -> int:
        """N."""
        return len(self.prompts)

    @property
    def points(self) -> FloatArray:
        """Mean raw rewards per weight `[W, K]`: over the prompts that have a score."""
        return mean_over_prompts(self.rewards)

    @property
    def baseline_points(self) -> FloatArray | None:
        """Mean raw rewards of the base model per weight `[W, K]`, or None without a baseline."""
        return None if self.baseline is None else mean_over_prompts(self.baseline.rewards)

    def normalize(self, rewards: FloatArray) -> FloatArray:
        """Raw rewards `[..., K]` in this result's normalized units, same shape."""
        units: FloatArray = (rewards - self.normalization.mean) / self.normalization.std
        return units

    @property
    def normalized_points(self) -> FloatArray:
        """Mean rewards per weight `[W, K]` in normalized units: where hypervolume is measured."""
        return self.normalize(self.points)

    def to_dict(self) -> dict[str, Any]:
        """This record as JSON-able values, exactly what `save` writes."""
        body = {key: _jsonable(getattr(self, key)) for key in _KEYS}
        return {"schema": SCHEMA, "version": VERSION, **body}

    @classmethod
    def from_dict(cls, content: Any, *, origin: str = "results") -> SweepResult:
        """Rebuilds a record from `to_dict`'s answer.

        Args:
            content: The parsed JSON.
            origin: Where it came from, for error messages.

        Raises:
            ManifestError: If it is of another schema or version, or damaged.
        """
        _check_schema(content, origin)
        try:
            return cls(**_parse(content))
        except ManifestError as error:
            _refuse(origin, str(error))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _refuse(origin, f"{type(error).__name__}: {error}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `results.json` so that a crash leaves the old file or the new, never half.

        Args:
            path: The file; its folder is made when missing.

        Raises:
            ManifestError: If a number is infinite, or a description holds what JSON cannot.
        """
        try:
            text = json.dumps(self.to_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ManifestError(
                f"Results for {path} hold what JSON cannot ({error}). Expected finite numbers, "
                "texts, lists and objects; check the rewards and the description of the policy."
            ) from error
        write_text(path, text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SweepResult:
        """Reads `results.json`.

        Args:
            path: The file.

        Raises:
            ManifestError: If the file is missing, not JSON, of another schema, of another
                version, or has shapes that disagree.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(
                f"Cannot read results from {path}: {error}. Expected a results.json written by "
                "`moodpo evaluate`; check the path."
            ) from error
        try:
            content = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            _refuse(str(path), f"not valid JSON ({error})")
        return cls.from_dict(content, origin=str(path))


def mean_over_prompts(rewards: FloatArray) -> FloatArray:
    """Means over prompts without the missing scores.

    Args:
        rewards: `[W, N, K]`, NaN where there is no score.

    Returns:
        `[W, K]`, NaN where every score is missing.
    """
    present = ~np.isnan(rewards)
    sums = np.where(present, rewards, 0.0).sum(axis=1)
    counts = present.sum(axis=1)
    means: FloatArray = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _freeze_fields(record: Any, *names: str, dtype: type[np.generic] = np.float64) -> None:
    """Replaces the named arrays by read-only copies: nobody changes a record by accident."""
    for name in names:
        values = getattr(record, name)
        if values is not None:
            array = np.array(values, dtype=dtype)
            array.setflags(write=False)
            object.__setattr__(record, name, array)


def _check_shapes(result: SweepResult) -> None:
    W, N, K = len(result.weights), len(result.prompts), len(result.objectives)
    if len(set(result.objectives)) != K or K == 0 or W == 0 or N == 0:
        raise ManifestError(
            "results need at least one weight vector, one prompt and one objective, and no "
            f"objective twice; got {W}, {N} and {list(result.objectives)}."
        )
    _check_array("weights", result.weights, (W, K), finite=True)
    _check_array("rewards", result.rewards, (W, N, K))
    _check_array("lengths", result.lengths, (W, N), finite=True)
    _check_array("reference_point", result.reference_point, (K,), finite=True)
    _check_array("normalization.mean", result.normalization.mean, (K,), finite=True)
    _check_array("normalization.std", result.normalization.std, (K,), finite=True)
    if not (np.asarray(result.normalization.std) > 0).all():
        raise ManifestError(
            f"normalization.std must be above 0; got {list(result.normalization.std)}."
        )
    _check_texts("completions", result.completions, (W, N))
    if len(result.seeds) != N:
        raise ManifestError(f"seeds has {len(result.seeds)} entries but there are {N} prompts.")
    _check_optional(result, W, N, K)


def _check_optional(result: SweepResult, W: int, N: int, K: int) -> None:
    if result.finished is not None:
        _check_array("finished", result.finished, (W, N))
    if result.kl is not None:
        _check_array("kl", result.kl, (W, N))
    if result.held_out is not None:
        shape = (W, N, len(result.held_out.names))
        _check_array("held_out.rewards", result.held_out.rewards, shape)
    if result.baseline is not None:
        _check_baseline(result.baseline, W, N, K)


def _check_baseline(baseline: Baseline, W: int, N: int, K: int) -> None:
    _check_array("baseline.rewards", baseline.rewards, (W, N, K))
    _check_texts("baseline.completions", baseline.completions, (W, N))
    if baseline.lengths is not None:
        _check_array("baseline.lengths", baseline.lengths, (W, N))
    if baseline.finished is not None:
        _check_array("baseline.finished", baseline.finished, (W, N))
    if baseline.held_out_rewards is not None:
        shape = (W, N, baseline.held_out_rewards.shape[-1])
        _check_array("baseline.held_out_rewards", baseline.held_out_rewards, shape)


def _check_array(
    name: str, array: NDArray[Any], shape: tuple[int, ...], *, finite: bool = False
) -> None:
    if array.shape != shape:
        raise ManifestError(f"{name} must have shape {list(shape)}; got {list(array.shape)}.")
    if finite and not np.isfinite(array).all():
        raise ManifestError(f"{name} must be finite; got NaN or infinity.")


def _check_texts(name: str, texts: Texts, shape: tuple[int, int]) -> None:
    if len(texts) != shape[0] or any(len(row) != shape[1] for row in texts):
        counts = sorted({len(row) for row in texts})
        raise ManifestError(
            f"{name} must hold {shape[0]} x {shape[1]} texts; got {len(texts)} rows of {counts}."
        )


def _jsonable(value: Any) -> Any:
    """Plain JSON values: arrays become lists, records become objects, NaN becomes null."""
    if isinstance(value, HeldOut | Baseline | Normalization):
        return {name: _jsonable(getattr(value, name)) for name in value.__slots__}
    if isinstance(value, np.ndarray):
        items = value.astype(object)
        items[np.isnan(value)] = None
        return items.tolist()
    if isinstance(value, np.generic):
        return _jsonable(value.item())
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _parse(content: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments from parsed JSON of this schema and version."""
    fields: dict[str, Any] = {key: content.get(key) for key in _KEYS}
    fields |= {key: _strings(content[key]) for key in ("objectives", "prompts", "warnings")}
    fields["seeds"] = tuple(int(seed) for seed in content["seeds"])
    fields |= {key: _floats(content[key]) for key in ("weights", "rewards", "reference_point")}
    fields["lengths"] = np.array(content["lengths"], dtype=np.int64)
    fields["finished"] = _booleans(content.get("finished"))
    fields["kl"] = None if content["kl"] is None else _floats(content["kl"])
    fields["completions"] = tuple(_strings(row) for row in content["completions"])
    fields["held_out"] = _parse_held_out(content["held_out"])
    fields["baseline"] = _parse_baseline(content["baseline"])
    fields["normalization"] = _parse_normalization(content["normalization"])
    fields |= {key: _nulls_to_nan(dict(content[key])) for key in ("metrics", "steerability")}
    fields |= {
        key: dict(content[key]) for key in ["policy", "data", "sampling", "timings", "versions"]
    }
    return fields


def _parse_held_out(content: Mapping[str, Any] | None) -> HeldOut | None:
    if content is None:
        return None
    return HeldOut(names=_strings(content["names"]), rewards=_floats(content["rewards"]))


def _parse_baseline(content: Mapping[str, Any] | None) -> Baseline | None:
    if content is None:
        return None
    return Baseline(
        name=str(content["name"]),
        rewards=_floats(content["rewards"]),
        completions=tuple(_strings(row) for row in content["completions"]),
        lengths=content.get("lengths"),
        held_out_rewards=content.get("held_out_rewards"),
        finished=_booleans(content.get("finished")),
    )


def _parse_normalization(content: Mapping[str, Any]) -> Normalization:
    return Normalization(
        mean=_floats(content["mean"]), std=_floats(content["std"]), source=str(content["source"])
    )


def _floats(values: Any) -> FloatArray:
    """A float64 array; numpy reads None as NaN and refuses ragged lists."""
    return np.array(values, dtype=np.float64)


def _booleans(rows: Any) -> NDArray[np.bool_] | None:
    if rows is None:
        return None
    if not all(isinstance(value, bool) for row in rows for value in row):
        raise TypeError(f"expected lists of true and false, got {str(rows)[:60]!r}")
    return np.array(rows, dtype=np.bool_)


def _strings(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"expected a list of texts, got {str(values)[:60]!r}")
    return tuple(values)


def _nulls_to_nan(value: Any) -> Any:
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: _nulls_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nulls_to_nan(item) for item in value]
    return value


def _check_schema(content: Any, origin: str) -> None:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        _refuse(origin, f'not a moodpo result (expected "schema": "{SCHEMA}", got {found!r})')
    version = content.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise ManifestError(
            f"{origin} has results version {version}, but this moodpo reads version {VERSION}. "
            "Upgrade moodpo, or evaluate again with this one."
        )
    if version != VERSION or isinstance(version, bool):
        _refuse(origin, f"results version {version!r} is not supported (expected {VERSION})")
    missing = [key for key in _KEYS if key not in content and key not in _LATER_KEYS]
    if missing:
        _refuse(origin, f"missing {', '.join(missing)}")


def _refuse(origin: str, reason: str) -> NoReturn:
    raise ManifestError(
        f"Cannot use {origin}: {reason}. Run `moodpo evaluate` again to write a new one."
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
