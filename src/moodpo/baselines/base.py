"""What all baselines share: a `SteerablePolicy` with a record of its own, saving, loading.

What differs between baselines is which text the model reads (a conditioner) and which weights it
computes with (an adapter choice). Knows nothing of training or rewards. Shapes: K objectives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from moodpo.baselines.record import BaselineRecord
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, ManifestError
from moodpo.files import hash_weights, share_files
from moodpo.generation.base import SamplingConfig
from moodpo.models.choice import AdapterChoice, AsLoaded, adapter_at
from moodpo.models.embedded import EMBEDDED_NAME, is_embedded, recorded_name
from moodpo.models.find import PolicyFiles, locate_base
from moodpo.models.load import as_device, as_dtype, load
from moodpo.models.savable import check_savable_weights, record_base
from moodpo.policy import SteerablePolicy
from moodpo.records import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ADAPTERS", "BaselinePolicy", "OneAdapter", "Silent", "make_record"]

ADAPTERS = "adapters"


class BaselinePolicy(SteerablePolicy):
    """A steerable policy that writes weights, or chooses adapters by them, in another way.

    Args:
        model: The base model, or the PEFT model that carries the record's adapters.
        tokenizer: The model's.
        record: What `baseline.json` says.
        generation_batch_size: Sequences decoded at once.
        dtype: Half precision to compute in, where the weights are not all of it already.
        path: Where it was saved, if it was.

    Raises:
        ConfigError: If the record is of another kind, or the model lacks an adapter.
    """

    kind: ClassVar[str]
    title: ClassVar[str]  # what reports call it

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        record: BaselineRecord,
        *,
        generation_batch_size: int = 64,
        dtype: torch.dtype | None = None,
        path: str | Path | None = None,
    ) -> None:
        if record.kind != self.kind:
            raise ConfigError(
                f"{type(self).__name__} is of the kind {self.kind!r}; the record says "
                f"{record.kind!r}. Use load_baseline, which chooses the class."
            )
        carried = getattr(model, "peft_config", {})
        if missing := [name for name in record.adapters if name not in carried]:
            raise ConfigError(
                f"The record names the adapters {missing}, which the model does not carry. Pass "
                "the PEFT model they were trained on."
            )
        self.record = record
        self.path = path
        super().__init__(
            model.requires_grad_(False).eval(),
            tokenizer,
            self.written(record),
            sampling=SamplingConfig(**record.sampling),
            generation_batch_size=generation_batch_size,
            dtype=dtype,
            base=record.base_model,
            adapters=self.chosen(model, record),
            info={
                "name": self.title,
                "path": str(path or record.base_model),
                "kind": self.kind,
                "lineage": [],
                "adapters": len(record.adapters),
                "training": dict(record.training),
            },
        )

    # ---- What a baseline decides ----

    @classmethod
    def written(cls, record: BaselineRecord) -> Conditioner:
        """What the model reads; by default the prompt alone, which says nothing of weights."""
        return Silent.from_dict(record.conditioning)

    @classmethod
    def chosen(cls, model: nn.Module, record: BaselineRecord) -> AdapterChoice:
        """Which adapters answer; by default the first one, whatever the weights."""
        return OneAdapter(model, record.adapters[0])

    # ---- One way of saving and loading ----

    def save(self, folder: str | Path) -> None:
        """Writes `baseline.json` and the adapters; the base model stays where it is.

        Args:
            folder: Made if missing.

        Raises:
            DivergenceError: If a weight is NaN or infinite.
        """
        check_savable_weights(self.model, trained_only=False)
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        if self.record.adapters:
            model: Any = self.model
            model.save_pretrained(
                str(target / ADAPTERS),
                selected_adapters=list(self.record.adapters),
                save_embedding_layers=False,
            )
            for name in self.record.adapters:
                record_base(target / ADAPTERS / name, self.record.base_model)
                share_files(target / ADAPTERS / name)
        # Last: a folder that has the record is complete.
        self.record.save(target)
        self.path, self._info["path"] = target, str(target)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base_model: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        generation_batch_size: int = 64,
    ) -> Self:
        """Loads what `save` wrote.

        Args:
            folder: With a `baseline.json`.
            base_model: The model under the adapters, if it is not where it was in training.
            device: Where it runs; the first accelerator, else the CPU, when None.
            dtype: Of the base weights; bfloat16 on an accelerator and float32 on a CPU when None.
            generation_batch_size: Sequences decoded at once.

        Raises:
            ManifestError: If the folder holds no baseline, or its base model is gone.
            ConfigError: If it is of another kind, or the dtype is unknown.
        """
        record = BaselineRecord.load(folder)
        where = as_device(device)
        kind = as_dtype(dtype, where)
        files = _find(record, Path(folder), base_model)
        model, tokenizer = load(files, device=where, dtype=kind, adapter="beside")
        return cls(
            model,
            tokenizer,
            record,
            generation_batch_size=generation_batch_size,
            dtype=None if kind == torch.float32 else kind,
            path=folder,
        )

    @classmethod
    def from_pretrained(cls, policy: str | Path, **options: Any) -> Self:
        """As `load`."""
        return cls.load(policy, **options)

    def _hash(self) -> str | None:
        return None if self.path is None else _hash_adapters(Path(self.path))


class Silent(Conditioner):
    """A conditioner that writes no weights: the policy sees the prompt alone."""

    def messages(self, prompt: Prompt, weights: Sequence[float] | None) -> list[dict[str, str]]:
        """The conversation without an instruction, whatever is asked."""
        return super().messages(prompt, None)


class OneAdapter(AsLoaded):
    """One of a model's adapters, for all weights.

    Args:
        model: A PEFT model.
        name: Of the adapter.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model, self._name = model, name

    def active(self, group: Any) -> AbstractContextManager[Any]:
        """Switches to the adapter."""
        return adapter_at(self._model, self._name)


def make_record(
    kind: str,
    conditioner: Conditioner,
    *,
    sampling: SamplingConfig,
    base_model: str | None,
    **fields: Any,
) -> BaselineRecord:
    """A record of what was just made, with the versions that made it.

    Args:
        kind: Of the baseline.
        conditioner: Names the objectives, and frames prompts.
        sampling: How completions are sampled.
        base_model: Path or id.
        **fields: Other fields of `BaselineRecord`.
    """
    from importlib.metadata import version

    return BaselineRecord(
        kind=kind,
        conditioning=conditioner.to_dict(),
        sampling=asdict(sampling),
        base_model=_recorded(base_model),
        versions={name: version(name) for name in ("moodpo", "torch", "transformers", "peft")},
        **fields,
    )


def _recorded(base: str | None) -> str | None:
    """The embedded model by its own name: the Hub's model of that id has other weights."""
    if base is None:
        return None
    return EMBEDDED_NAME if is_embedded(base) else recorded_name(base)


def _find(record: BaselineRecord, folder: Path, base_model: str | None) -> PolicyFiles:
    base = base_model or record.base_model
    if base is None:
        raise ManifestError(
            f"{folder} does not say which model is under its adapters. Pass base_model=."
        )
    base = locate_base(base)
    adapters = {name: str(folder / ADAPTERS / name) for name in record.adapters}
    return PolicyFiles(name=str(folder), model=base, tokenizer=base, adapters=adapters)


def _hash_adapters(folder: Path) -> str | None:
    """One hash of all adapters' weights, in name order; None where there are none."""
    hashes = [hash_weights(path) for path in sorted((folder / ADAPTERS).glob("*/"))]
    if not hashes:
        return None
    return hashlib.sha256(" ".join(map(str, hashes)).encode()).hexdigest()
