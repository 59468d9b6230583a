"""What all baselines share: asking a model in groups of rows, saving, loading.

A baseline is a policy for `evaluation.sweep`, beside `moodpo.SteerablePolicy`: it has objectives
and samples one answer per prompt and weight vector. What differs between baselines is which text
the model reads and which weights it computes with. Knows nothing of training or rewards.
Shapes: N prompts, K objectives.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from moodpo.baselines.record import BaselineRecord
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, ManifestError
from moodpo.files import hash_weights, share_files
from moodpo.generation.base import SamplingConfig
from moodpo.generation.hf import HFGenerator
from moodpo.generation.tokens import count_tokens, read_answer, token_roles
from moodpo.models.embedded import EMBEDDED_NAME, is_embedded, recorded_name
from moodpo.models.find import PolicyFiles, locate_base
from moodpo.models.load import as_device, as_dtype, load
from moodpo.models.savable import record_base
from moodpo.records import Answer, Prompt, TokenIds
from moodpo.training.guard import check_savable_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ADAPTERS", "BaselinePolicy", "BeforeTraining", "make_record"]

ADAPTERS = "adapters"

Weights = tuple[float, ...]


class BaselinePolicy:
    """A model that is asked with weight vectors, one group of alike rows at a time.

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
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.record = record
        self.conditioner = Conditioner.from_dict(record.conditioning)
        self.path = path
        self.generator = HFGenerator(
            model,
            **token_roles(model, tokenizer),
            generation_batch_size=generation_batch_size,
            dtype=dtype,
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of every weight vector."""
        return self.conditioner.objectives

    @property
    def sampling(self) -> SamplingConfig:
        """How completions were sampled in training."""
        return SamplingConfig(**self.record.sampling)

    def sampling_with(self, **changes: float | None) -> SamplingConfig:
        """How this policy samples, with some settings changed; None changes nothing."""
        return self.sampling.changed(**changes)

    def sample(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        *,
        seeds: Sequence[int],
        sampling: SamplingConfig,
    ) -> list[Answer]:
        """One answer per prompt, for sweeps.

        Args:
            prompts: N raw prompts.
            weights: `[N, K]` on the simplex.
            seeds: N integers; an answer depends on its own prompt, weights and seed alone.
            sampling: How completions are sampled.

        Returns:
            N answers, with the tokens that were sampled.
        """
        return self._sample(prompts, weights, seeds, sampling, trained=True)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts whose own are not known, special tokens not counted."""
        return count_tokens(self.tokenizer, texts)

    def describe(self) -> dict[str, Any]:
        """Name, path, kind, lineage and a hash of the adapters, for results."""
        return {
            "name": self.title,
            "path": str(self.path or self.record.base_model),
            "kind": self.kind,
            "lineage": [],
            "adapters": len(self.record.adapters),
            "training": dict(self.record.training),
            "sha256": None if self.path is None else _hash_adapters(Path(self.path)),
        }

    def base_policy(self) -> BeforeTraining:
        """The model before training, asked with the very same text."""
        return BeforeTraining(self)

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
            self.model.save_pretrained(
                str(target / ADAPTERS),
                selected_adapters=list(self.record.adapters),
                save_embedding_layers=False,
            )
            for name in self.record.adapters:
                record_base(target / ADAPTERS / name, self.record.base_model)
                share_files(target / ADAPTERS / name)
        # Last: a folder that has the record is complete.
        self.record.save(target)
        self.path = target

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

    # ---- What a baseline decides ----

    def _group(self, weights: Weights) -> Hashable:
        """Rows of one group are answered by one and the same model; by default there is one."""
        return None

    def _active(self, group: Any) -> AbstractContextManager[Any]:
        """Within it, the model answers for that group."""
        return nullcontext()

    def _encode(self, prompt: Prompt, weights: Weights) -> TokenIds:
        """What the model reads; by default the prompt alone, which says nothing of weights."""
        return self.conditioner.encode(self.tokenizer, prompt, None)

    # ---- One way of asking ----

    def _sample(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        seeds: Sequence[int],
        sampling: SamplingConfig,
        *,
        trained: bool,  # False asks the model under the adapters
    ) -> list[Answer]:
        rows: list[Weights] = [tuple(row) for row in weights.tolist()]
        ids = [self._encode(p, row) for p, row in zip(prompts, rows, strict=True)]
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            groups[self._group(row) if trained else None].append(i)
        answers: list[Answer] = [Answer("")] * len(rows)
        for group, members in groups.items():
            with self._active(group) if trained else self._without_adapters():
                sampled = self.generator.generate(
                    [ids[i] for i in members],
                    sampling=sampling,
                    num_completions=1,
                    seeds=[seeds[i] for i in members],
                )
            for i, (completion,) in zip(members, sampled, strict=True):
                answers[i] = read_answer(self.tokenizer, completion)
        return answers

    def _without_adapters(self) -> AbstractContextManager[Any]:
        off: AbstractContextManager[Any] = nullcontext()
        return self.model.disable_adapter() if self.record.adapters else off


class BeforeTraining:
    """A baseline with its adapters switched off: what to compare it with.

    Args:
        policy: The baseline; its model is shared.
    """

    def __init__(self, policy: BaselinePolicy) -> None:
        self._policy = policy
        self.objectives = policy.objectives

    def sample(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        *,
        seeds: Sequence[int],
        sampling: SamplingConfig,
    ) -> list[Answer]:
        """As `BaselinePolicy.sample`, from the base model."""
        return self._policy._sample(prompts, weights, seeds, sampling, trained=False)

    def describe(self) -> dict[str, Any]:
        """Name, path, kind and lineage, for results."""
        path = self._policy.record.base_model
        return {"name": "base model", "path": path, "kind": "base", "lineage": []}


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
