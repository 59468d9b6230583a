"""Rollout: prompts → weights → completions → rewards. No Trainer in it.

Everything random is keyed by (seed, step, position in the global batch), so that neither the
number of processes, nor accumulation, nor an interruption changes what is sampled.
Shapes: B prompts, M weight vectors each is sampled under, g completions under each, N further
weight vectors for labeling, K objectives. By default M = 1, g = 2, N = 1.
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
from moodpo.generation.base import Completion, Generator, SamplingConfig
from moodpo.generation.tokens import completion_text
from moodpo.records import Prompt, PromptBatch, RolloutBatch, TokenIds
from moodpo.rewards.panel import RewardPanel
from moodpo.training.samplers import WeightSampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["NUM_COMPLETIONS", "RolloutCollector"]

NUM_COMPLETIONS = 2  # g by default
Phase = Callable[[str], AbstractContextManager[None]]


@dataclass(kw_only=True)
class RolloutCollector:
    """Samples and scores one optimizer step's completions.

    Every prompt has a sequence of weight vectors: a draw, its opposite, another draw, its opposite,
    and so on. The first M are sampled under; `antithetic` relabeling goes on with the next N, and
    `fresh` relabeling with N draws.

    Attributes:
        conditioner: Writes weights into prompts.
        tokenizer: The policy's.
        generator: The backend that samples.
        panel: All rewards; sees raw prompts only.
        sampling: Lengths and temperature.
        sampler: Draws the weights.
        num_completions: g, completions under each weight vector.
        weights_per_prompt: M, weight vectors that each prompt is sampled under.
        relabel: `none`, `antithetic` or `fresh`.
        num_relabels: N, further weight vectors to label each prompt under.
        phase: Called with `generate` or `score`; times and shows the phase.
    """

    conditioner: Conditioner
    tokenizer: PreTrainedTokenizerBase
    generator: Generator
    panel: RewardPanel
    sampling: SamplingConfig
    sampler: WeightSampler
    num_completions: int = NUM_COMPLETIONS
    weights_per_prompt: int = 1
    relabel: str = "none"
    num_relabels: int = 1
    phase: Phase = lambda _: nullcontext()

    def encode(self, prompt: Prompt, weights: Tensor) -> TokenIds:
        """Token ids of one prompt conditioned on weights `[K]`."""
        return self.conditioner.encode(self.tokenizer, prompt, weights.tolist())

    def collect(
        self, batch: PromptBatch, *, key: tuple[int | str, ...], first: int = 0
    ) -> RolloutBatch:
        """Scored completions of every prompt.

        Args:
            batch: B raw prompts; `indices` place them in the global batch.
            key: What makes this rollout differ from every other: (seed, stream, step).
            first: How many prompts of the run come before this global batch.

        Returns:
            The rollout, rewards raw. Without prompts nothing is sampled, and no reward is asked:
            another process may have the last ones of an epoch.
        """
        M = self.weights_per_prompt
        sampled, further = self._weights(batch.indices, key, first)  # [B, M, K], [B, N, K] or None
        weights, prompts = sampled.flatten(0, 1), [p for p in batch.prompts for _ in range(M)]
        prompt_ids = [
            self.encode(prompt, row) for prompt, row in zip(prompts, weights, strict=True)
        ]
        with self.phase("generate"):
            completions = self._complete(batch, prompt_ids, key)
        token_ids = [tuple(c.token_ids for c in row) for row in completions]
        texts = [tuple(completion_text(self.tokenizer, c) for c in row) for row in completions]
        with self.phase("score"):
            rewards = self.score(batch, texts, token_ids)
        ended = [[c.finished for c in row] for row in completions]
        return RolloutBatch(
            prompts=prompts,
            weights=weights,
            prompt_ids=prompt_ids,
            completion_ids=token_ids,
            completions=texts,
            finished=torch.tensor(ended, dtype=torch.bool).view(-1, self.num_completions),
            rewards=rewards,
            weights_per_prompt=M,
            relabel_weights=further,
        )

    def _complete(
        self, batch: PromptBatch, prompt_ids: list[TokenIds], key: tuple[int | str, ...]
    ) -> list[tuple[Completion, ...]]:
        """The completions `B * M x g` of conditioned prompts."""
        if not prompt_ids:
            return []
        at = self._positions(batch.indices, self.weights_per_prompt)
        return self.generator.generate(
            prompt_ids,
            sampling=self.sampling,
            num_completions=self.num_completions,
            seeds=[derive_seed(*key, "y", *place) for place in at],
        )

    def score(
        self,
        batch: PromptBatch,
        texts: Sequence[Sequence[str]],
        token_ids: Sequence[Sequence[TokenIds]],
    ) -> Tensor:
        """Raw rewards `[B * M, g, K]` of interleaved completions, one pass per reward."""
        if not texts:
            return torch.zeros(0, self.num_completions, len(self.panel))
        repeat = range(self.weights_per_prompt * self.num_completions)
        columns = {
            name: [v for v in values for _ in repeat] for name, values in batch.columns.items()
        }
        columns["completion_ids"] = [list(ids) for row in token_ids for ids in row]
        flat = self.panel.score(
            [prompt for prompt in batch.prompts for _ in repeat],
            [text for row in texts for text in row],
            columns,
        )  # [B * M * g, K]
        return flat.view(len(texts), self.num_completions, -1)

    def _weights(
        self, indices: Sequence[int], key: tuple[int | str, ...], first: int
    ) -> tuple[Tensor, Tensor | None]:
        """The weights to sample under `[B, M, K]`, and further ones to label under `[B, N, K]`."""
        M, N = self.weights_per_prompt, self.num_relabels
        N = 0 if self.relabel == "none" else N

        def drawn(number: int) -> Tensor:
            """The `number`-th draw `[B, K]` of each prompt's sequence."""
            stream = ("w",) if number == 0 else ("w", number)
            seeds = [derive_seed(*key, *stream, i) for i in indices]
            positions = [first + i for i in indices]
            return self.sampler.draw(seeds, positions=positions, number=number)

        wanted = M if self.relabel == "fresh" else M + N
        sequence: list[Tensor] = []
        for number in range(wanted):
            if number % 2:
                sequence.append(self.sampler.opposite(sequence[-1]))
            else:
                sequence.append(drawn(number))
        if self.relabel == "fresh":
            sequence += [drawn(M + number) for number in range(N)]
        stacked = torch.stack(sequence, dim=1)  # [B, M + N, K]
        return stacked[:, :M], stacked[:, M:] if N else None

    def _positions(self, indices: Sequence[int], rows: int) -> list[tuple[int, ...]]:
        """What keys the randomness of each row: its prompt's place, and its own among M."""
        return [(i, m) if m else (i,) for i in indices for m in range(rows)]
