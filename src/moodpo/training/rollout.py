"""Rollout: prompts → weights → completions → rewards. No Trainer in it.

Everything random is keyed by (seed, step, position in the global batch), so that neither the
number of processes, nor accumulation, nor an interruption changes what is sampled.
Shapes: B prompts, M weight vectors each is sampled under, g completions under each, L weight
vectors each is labeled under, K objectives. By default M = 1, g = 2, L = 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moodpo.conditioning.instruction import Conditioner
from moodpo.core.seeds import derive_seed
from moodpo.generation.base import Generator, SamplingConfig, Who
from moodpo.generation.tokens import completion_text
from moodpo.records import Completion, Prompt, PromptBatch, RolloutBatch, TokenIds
from moodpo.rewards.panel import RewardPanel
from moodpo.training.draws import Draw, draw_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NUM_COMPLETIONS", "Key", "RolloutCollector"]

NUM_COMPLETIONS = 2  # g by default
Key = tuple[int | str, ...]
Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(kw_only=True)
class RolloutCollector:
    """Samples and scores one optimizer step's completions.

    Every prompt has a sequence of weight vectors: a draw, its opposite, another draw, its opposite,
    and so on. The first M are sampled under; relabeling labels under the next one, too.

    Attributes:
        conditioner: Writes weights into prompts.
        tokenizer: The policy's.
        generator: The backend that samples.
        panel: All rewards; sees raw prompts only.
        sampling: Lengths and temperature.
        draw: Draws the weights.
        num_completions: g, completions under each weight vector.
        weights_per_prompt: M, weight vectors that each prompt is sampled under.
        relabel: `none`, or `antithetic`.
        phase: Called with `generate` or `score`; times and shows the phase.
    """

    conditioner: Conditioner
    tokenizer: PreTrainedTokenizerBase
    generator: Generator
    panel: RewardPanel
    sampling: SamplingConfig
    draw: Draw
    num_completions: int = NUM_COMPLETIONS
    weights_per_prompt: int = 1
    relabel: str = "none"
    phase: Phase = lambda _: nullcontext()

    def encode(self, prompt: Prompt, weights: Tensor) -> TokenIds:
        """Token ids of one prompt conditioned on weights `[K]`."""
        return self.conditioner.encode(self.tokenizer, prompt, weights.tolist())

    def collect(self, batch: PromptBatch, *, key: Key, who: Who = "policy") -> RolloutBatch:
        """Scored completions of every prompt.

        Args:
            batch: B raw prompts; `indices` place them in the global batch.
            key: What makes this rollout differ from every other: (seed, stream, step).
            who: Whose completions: the policy's, or the reference's.

        Returns:
            The rollout, rewards raw. Without prompts nothing is sampled, and no reward is asked:
            another process may have the last ones of an epoch.
        """
        M = self.weights_per_prompt
        count = M + (self.relabel != "none")
        labels = draw_labels(self.draw, batch.indices, key, count=count)  # [B, L, K]
        prompt_ids = [
            tuple(self.encode(prompt, weights) for weights in row[:M])
            for prompt, row in zip(batch.prompts, labels, strict=True)
        ]
        with self.phase("generate"):
            completions = self._complete(batch, prompt_ids, key, who)  # B x M x g
        texts = [
            tuple(tuple(completion_text(self.tokenizer, c) for c in group) for group in row)
            for row in completions
        ]
        with self.phase("score"):
            rewards = self.score(batch, texts, completions)
        return RolloutBatch(
            prompts=batch.prompts,
            labels=labels,
            prompt_ids=prompt_ids,
            completions=completions,
            texts=texts,
            rewards=rewards,
        )

    def _complete(
        self, batch: PromptBatch, prompt_ids: Sequence[tuple[TokenIds, ...]], key: Key, who: Who
    ) -> list[tuple[tuple[Completion, ...], ...]]:
        """The completions `B x M x g` of conditioned prompts."""
        if not prompt_ids:
            return []
        M = self.weights_per_prompt
        # What keys the randomness of each: its prompt's place, and its own among M.
        places = [(i, m) if m else (i,) for i in batch.indices for m in range(M)]
        flat = self.generator.generate(
            [ids for row in prompt_ids for ids in row],
            sampling=self.sampling,
            num_completions=self.num_completions,
            seeds=[derive_seed(*key, "y", *place) for place in places],
            who=who,
        )
        return [tuple(flat[i : i + M]) for i in range(0, len(flat), M)]

    def score(
        self,
        batch: PromptBatch,
        texts: Sequence[Sequence[Sequence[str]]],
        completions: Sequence[Sequence[Sequence[Completion]]],
    ) -> Tensor:
        """Raw rewards `[B, M, g, K]` of completions `B x M x g`, one pass per reward.

        All completions of a prompt stand next to each other, as TRL passes them.
        """
        shape = (len(texts), self.weights_per_prompt, self.num_completions, len(self.panel))
        if not texts:
            return torch.zeros(shape)
        repeat = range(self.weights_per_prompt * self.num_completions)
        columns = {
            name: [v for v in values for _ in repeat] for name, values in batch.columns.items()
        }
        columns["completion_ids"] = [
            list(c.token_ids) for row in completions for group in row for c in group
        ]
        flat = self.panel.score(
            [prompt for prompt in batch.prompts for _ in repeat],
            [text for row in texts for group in row for text in group],
            columns,
        )  # [B * M * g, K]
        return flat.view(shape)
