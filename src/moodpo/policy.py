"""`SteerablePolicy`: a trained policy that is asked with a weight vector.

Reads what training wrote (`moodpo.json`, adapter or model), so that prompts are conditioned exactly
as in training. Knows nothing of rewards or of how answers are used. Shapes: N prompts, K
objectives.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moodpo.conditioning.instruction import Conditioner
from moodpo.conditioning.weights import weight_rows
from moodpo.core.seeds import derive_seed
from moodpo.core.tokens import collate_sequences
from moodpo.data.messages import as_prompts
from moodpo.errors import ConfigError, ManifestError
from moodpo.files import hash_weights
from moodpo.generation.base import SamplingConfig
from moodpo.generation.hf import HFGenerator
from moodpo.generation.tokens import count_tokens, read_answer
from moodpo.limits import check_range
from moodpo.manifest import MANIFEST_NAME, RunManifest
from moodpo.models.adapters import rewrites_base
from moodpo.models.choice import AdapterChoice, AsLoaded, WithoutAdapters
from moodpo.models.find import PolicyFiles, find_policy, locate_base, recorded_base
from moodpo.models.load import as_device, as_dtype, load
from moodpo.models.logps import completion_logps, head_is_linear
from moodpo.records import Answer, Prompt, TokenIds, prompt_text
from moodpo.rewards.words import words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SteerablePolicy"]

LOGP_ROWS = 32  # sequences of one forward pass
DEFAULT_SAMPLING = SamplingConfig(max_new_tokens=128)

ObjectiveWeights = Mapping[str, float] | Sequence[Any] | Tensor | Any  # arrays and tables, too


class SteerablePolicy:
    """One policy for every weighting of its objectives.

    Args:
        model: A causal language model, or a PEFT model around one.
        tokenizer: The policy's.
        conditioner: Writes weights into prompts.
        sampling: What `generate` uses where it is not told otherwise.
        generation_batch_size: Sequences decoded at once.
        info: What identifies the policy: name, path, kind, lineage.
        dtype: Half precision to compute in, where the weights are not all of it already.
        base: Path or id of the model before training, for `base_policy`.
        adapters: Which of the model's adapters answer; the model as it is when None.
        generator: Samples from the model; one of its own when None.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        conditioner: Conditioner,
        *,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        generation_batch_size: int = 64,
        info: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        base: str | None = None,
        adapters: AdapterChoice | None = None,
        generator: HFGenerator | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.conditioner = conditioner
        self.sampling = sampling
        self._info = dict(info or {})
        self._base = base
        self.adapters: AdapterChoice = adapters or AsLoaded()
        self.generator = generator or HFGenerator.of(
            model,
            tokenizer,
            generation_batch_size=generation_batch_size,
            dtype=dtype,
        )

    @classmethod
    def from_pretrained(
        cls,
        policy: str | Path,
        *,
        objectives: Sequence[str] | None = None,
        conditioner: Conditioner | None = None,
        base_model: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        generation_batch_size: int = 64,
    ) -> SteerablePolicy:
        """Loads an output folder, a checkpoint, a model folder or a Hub id.

        An adapter is merged into float32 weights. In half precision it stays beside the base
        model: most of what training changed is smaller than the last bit of a bfloat16 weight,
        and merging would round it away.

        Args:
            policy: What `moodpo train` wrote, or any causal language model.
            objectives: K names, for a model without a `moodpo.json`; its weights are then written
                as by default.
            conditioner: How weights are written, in place of `objectives` and `moodpo.json`.
            base_model: The model under the adapter, if it is not where it was in training.
            device: Where it runs; the first accelerator, else the CPU, when None.
            dtype: Of the weights; bfloat16 on an accelerator and float32 on a CPU when None.
            generation_batch_size: Sequences decoded at once.

        Raises:
            ManifestError: If there is no `moodpo.json` and no objectives were given, or the base
                model of an adapter is not to be found.
            ConfigError: If the objectives are not those of `moodpo.json`.
        """
        check_range("generation_batch_size", generation_batch_size, 1)
        files = find_policy(policy, base_model=base_model)
        conditioner = conditioner or _conditioner(files, objectives)
        where = as_device(device)
        kind = as_dtype(dtype, where)
        model, tokenizer = load(files, device=where, dtype=kind, adapter="merged")
        return cls(
            model,
            tokenizer,
            conditioner,
            sampling=_trained_sampling(files.manifest),
            generation_batch_size=generation_batch_size,
            info=_describe(files),
            dtype=None if kind == torch.float32 else kind,
            base=recorded_base(files.manifest),
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the objectives, in the order of every weight vector."""
        return self.conditioner.objectives

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        objective_weights: ObjectiveWeights,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Answers prompts under given weights.

        An answer depends on its prompt, its weights and the seed: not on the other prompts.

        Args:
            prompts: One text, one conversation that ends with a user turn, one message of the
                user, or N texts and conversations.
            objective_weights: By name (missing names weigh 0), K values, or `[N, K]`: one row per
                prompt. A Series or table is read by its labels. Normalized to sum to 1.
            max_new_tokens: Longest answer in tokens; as in training when None.
            temperature: 0 is greedy; as in training when None.
            top_p: Nucleus mass; as in training when None.
            seed: Of the answers: another seed gives other ones.

        Returns:
            N answers.

        Raises:
            DataError: If something else was passed as prompts, or one holds no text.
            WeightsError: If the weights do not fit the objectives or the prompts.
        """
        asked = as_prompts(prompts)
        rows = weight_rows(objective_weights, self.objectives, count=len(asked))
        changes = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        answers = self.sample(
            asked,
            torch.tensor(rows, dtype=torch.float64).reshape(len(asked), len(self.objectives)),
            seeds=[derive_seed(seed, "answer", _key(prompt)) for prompt in asked],
            sampling=self.sampling_with(**changes),
        )
        return [answer.text for answer in answers]

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
        ids = [
            self.conditioner.encode(self.tokenizer, prompt, row)
            for prompt, row in zip(prompts, weights.tolist(), strict=True)
        ]
        answers = [Answer("")] * len(ids)
        for active, rows in self._groups(weights):
            with active:
                completions = self.generator.generate(
                    [ids[i] for i in rows],
                    sampling=sampling,
                    num_completions=1,
                    seeds=[seeds[i] for i in rows],
                )
            for i, (completion,) in zip(rows, completions, strict=True):
                answers[i] = read_answer(self.tokenizer, completion)
        return answers

    def _groups(
        self, weights: Tensor
    ) -> Iterator[tuple[AbstractContextManager[Any], Sequence[int]]]:
        """Rows that the same adapters answer, with what makes the model compute with those."""
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        for i, row in enumerate(weights.tolist()):
            groups[self.adapters.group(tuple(row))].append(i)
        for group, rows in groups.items():
            yield self.adapters.active(group), rows

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts whose own are not known, special tokens not counted."""
        return count_tokens(self.tokenizer, texts)

    def kl_to_reference(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        answers: Sequence[Answer | str],
        *,
        sampling: SamplingConfig | None = None,
    ) -> list[float] | None:
        """How far each answer is from the model before training, under the same instruction.

        The one-sample estimate `log π(y|x,w) - log π_ref(y|x,w)` of the KL divergence per
        sequence, over the tokens that were sampled: where an answer ended by itself, the token
        that ended it counts, also in an answer without any text. Both are log-probabilities at the
        sampling temperature (at 1 of greedy answers), as in what training logs as `kl`; top_k,
        top_p and min_new_tokens are not in them. Single values may be negative; their mean over
        samples is not, up to noise, where none of these three restricts what is sampled.

        Args:
            prompts: N raw prompts.
            weights: `[N, K]` on the simplex.
            answers: N answers of `sample`.
            sampling: How they were sampled; as in training when None.

        Returns:
            N values in nats; None where the model before training is not known, or the tokens of
            an answer are not: a text alone does not say how it ended.
        """
        if self._is_base:
            return [0.0] * len(answers)
        if not self._holds_base and self._base is None:
            return None
        sampled = [None if isinstance(answer, str) else answer.token_ids for answer in answers]
        token_ids = [ids for ids in sampled if ids is not None]
        if len(token_ids) < len(answers):
            return None
        temperature = (sampling or self.sampling).temperature or 1.0
        ours, theirs = (
            policy._logps(prompts, weights, token_ids, temperature)
            for policy in (self, self._before)
        )
        return (ours - theirs).tolist()

    def _logps(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        completions: Sequence[TokenIds],
        temperature: float,
    ) -> Tensor:
        """Log-probabilities `[N]` of completions in nats; 0 of one without any token."""
        result = torch.zeros(len(completions))
        for active, rows in self._groups(weights):
            lengths = {i: len(completions[i]) for i in rows if completions[i]}
            ordered = sorted(lengths, key=lengths.__getitem__)
            with active:
                for start in range(0, len(ordered), LOGP_ROWS):
                    some = ordered[start : start + LOGP_ROWS]
                    asked = [prompts[i] for i in some], weights[some]
                    said = [completions[i] for i in some]
                    result[some] = self._logps_of(*asked, said, temperature)
        return result

    @torch.no_grad()
    def _logps_of(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        completions: Sequence[TokenIds],
        temperature: float,
    ) -> Tensor:
        """Log-probabilities `[n]` of what one forward pass takes, none of it empty."""
        conditioned = [
            self.conditioner.encode(self.tokenizer, prompt, row)
            for prompt, row in zip(prompts, weights.tolist(), strict=True)
        ]
        pad = self.generator.pad_token_id
        batch = collate_sequences(conditioned, completions, pad_token_id=pad)
        scored = completion_logps(
            self.model,
            batch.to(next(self.model.parameters()).device),
            linear_head=self._linear_head,
            with_entropies=False,
            temperature=temperature,
        )
        return scored.logps.float().cpu()

    def describe(self) -> dict[str, Any]:
        """Name, path, kind, lineage and a hash of the weights."""
        return {**self._info, "sha256": self._hash()}

    def written_by(self, conditioner: Conditioner) -> SteerablePolicy:
        """The same model, asked in another way.

        Args:
            conditioner: Writes the weights in place of the one from training; its objectives may
                stand in another order.

        Returns:
            A policy that shares this one's weights.
        """
        return self._view(conditioner=conditioner)

    def base_policy(self) -> SteerablePolicy:
        """The model before training, under the very same instructions: what to compare with.

        It shares this policy's weights where they lie under an adapter, and is loaded otherwise.

        Raises:
            ManifestError: If nothing says what the base model is.
        """
        return self._before

    def _view(self, **changes: Any) -> SteerablePolicy:
        """A policy that shares this one's weights, and all else but what changes."""
        same: dict[str, Any] = {
            "conditioner": self.conditioner,
            "sampling": self.sampling,
            "info": self._info,
            "base": self._base,
            "adapters": self.adapters,
            "generator": self.generator,
        }
        return SteerablePolicy(self.model, self.tokenizer, **{**same, **changes})

    @property
    def _is_base(self) -> bool:
        """Whether this is the model before training."""
        return isinstance(self.adapters, WithoutAdapters)

    @property
    def _holds_base(self) -> bool:
        """Whether the model before training is left where an adapter is switched off.

        Not where it trained the base model's own biases, or began by rewriting what lies under it.
        """
        configs: Any = getattr(self.model, "peft_config", {})
        return hasattr(self.model, "disable_adapter") and not any(
            rewrites_base(config) or getattr(config, "bias", "none") != "none"
            for config in configs.values()
        )

    @cached_property
    def _before(self) -> SteerablePolicy:
        if self._is_base or self._holds_base:
            info: dict[str, Any] = {"name": "base model", "path": self._base, "kind": "base"}
            info["lineage"] = []
            return self._view(adapters=WithoutAdapters(self.model), info=info)
        if self._base is None:
            raise ManifestError(
                "This policy does not say which model it was trained from. Name a baseline."
            )
        first = next(self.model.parameters())
        stored = SteerablePolicy.from_pretrained(
            locate_base(self._base),
            conditioner=self.conditioner,
            device=first.device,
            dtype=first.dtype,
            generation_batch_size=self.generator.generation_batch_size,
        )
        named = {**stored._info, "name": "base model", "kind": "base"}
        return stored._view(info=named)

    @cached_property
    def _linear_head(self) -> bool:
        return head_is_linear(self.model)

    def _hash(self) -> str | None:
        """Of the weights, where they are on disk."""
        path = None if self._is_base else self._info.get("path")
        return hash_weights(path) if path and Path(path).is_dir() else None


def _conditioner(files: PolicyFiles, objectives: Sequence[str] | None) -> Conditioner:
    if files.manifest is None:
        if not objectives:
            raise ManifestError(
                f"{files.name} has no {MANIFEST_NAME}, so its objectives are unknown. Name them: "
                "objectives=[...], or --reward_models on the command line."
            )
        return Conditioner(objectives=tuple(objectives), **words_of(objectives))
    if objectives is not None and tuple(objectives) != tuple(files.manifest.objectives):
        raise ConfigError(
            f"{files.name} was trained for the objectives {', '.join(files.manifest.objectives)}, "
            f"not {', '.join(objectives)}. Leave them out: they are read from {MANIFEST_NAME}."
        )
    return Conditioner.from_dict(files.manifest.conditioning)


def _describe(files: PolicyFiles) -> dict[str, Any]:
    manifest = files.manifest
    return {
        "name": Path(files.name).name or files.name,
        "path": files.path,
        "kind": "adapter" if files.adapter else "model",
        "lineage": [dict(entry) for entry in manifest.lineage] if manifest else [],
    }


def _trained_sampling(manifest: RunManifest | None) -> SamplingConfig:
    known = set(SamplingConfig.__dataclass_fields__)
    values = dict(manifest.sampling) if manifest else {}
    return replace(DEFAULT_SAMPLING, **{n: v for n, v in values.items() if n in known})


# --- arguments ------------------------------------------------------------------------------


def _key(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    turns = [[turn["role"], turn["content"]] for turn in prompt]
    return json.dumps(turns, ensure_ascii=False) if len(turns) > 1 else prompt_text(prompt)
