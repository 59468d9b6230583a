"""Rollout: prompts → weights → completions → rewards → pairs. No Trainer in it.

Everything random is keyed by (seed, step, position in the global batch), so that neither the
number of processes, nor accumulation, nor an interruption changes what is sampled.
Shapes: B prompts, 2 completions, K objectives, P training pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moodpo.conditioning import Conditioner
from moodpo.core.pairing import Pairing, pair_completions
from moodpo.core.scalarization import Scalarization, scalarize
from moodpo.core.simplex import antithetic_weights, sample_dirichlet
from moodpo.generation.base import Generator, SamplingConfig
from moodpo.records import PairBatch, Prompt, PromptBatch, RolloutBatch, TokenIds
from moodpo.rewards.normalize import Normalizer
from moodpo.rewards.panel import RewardPanel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PairStatistics", "RolloutCollector", "build_pairs", "derive_seed", "draw_weights"]

NUM_COMPLETIONS = 2
Phase = Callable[[str], AbstractContextManager[None]]


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, step, position, stream); any part changes it all."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_weights(
    concentration: Sequence[float], num_objectives: int, seeds: Sequence[int]
) -> Tensor:
    """One Dirichlet draw per seed, each independent of the others' presence.

    Args:
        concentration: One value, or K.
        num_objectives: K.
        seeds: B seeds.

    Returns:
        Weights `[B, K]`.
    """
    values = concentration[0] if len(concentration) == 1 else concentration
    draws = [
        sample_dirichlet(
            values,
            num_samples=1,
            num_objectives=num_objectives,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in seeds
    ]
    return torch.cat(draws)


@dataclass(kw_only=True)
class RolloutCollector:
    """Samples and scores one optimizer step's completions.

    Attributes:
        conditioner: Writes weights into prompts.
        tokenizer: The policy's.
        generator: The backend that samples.
        panel: All rewards; sees raw prompts only.
        sampling: Lengths and temperature.
        concentration: Of the Dirichlet, one value or K.
        draw: Draws weights `[B, K]` from B seeds, in place of the Dirichlet.
        phase: Called with `generate` or `score`; times and shows the phase.
    """

    conditioner: Conditioner
    tokenizer: PreTrainedTokenizerBase
    generator: Generator
    panel: RewardPanel
    sampling: SamplingConfig
    concentration: Sequence[float]
    draw: Callable[[Sequence[int]], Tensor] | None = None
    phase: Phase = lambda _: nullcontext()

    def encode(self, prompt: Prompt, weights: Tensor) -> TokenIds:
        """Token ids of one prompt conditioned on weights `[K]`."""
        return self.conditioner.encode(self.tokenizer, prompt, weights.tolist())

    def collect(self, batch: PromptBatch, *, key: tuple[int | str, ...]) -> RolloutBatch:
        """Two scored completions per prompt.

        Args:
            batch: B raw prompts; `indices` place them in the global batch.
            key: What makes this rollout differ from every other: (seed, stream, step).

        Returns:
            The rollout, rewards raw.
        """
        weights = self._draw([derive_seed(*key, "w", i) for i in batch.indices])  # [B, K]
        prompt_ids = [self.encode(p, w) for p, w in zip(batch.prompts, weights, strict=True)]
        with self.phase("generate"):
            sampled = self.generator.generate(
                prompt_ids,
                sampling=self.sampling,
                num_completions=NUM_COMPLETIONS,
                seeds=[derive_seed(*key, "y", i) for i in batch.indices],
            )
        texts = [
            tuple(self.tokenizer.decode(c.token_ids, skip_special_tokens=True) for c in pair)
            for pair in sampled
        ]
        with self.phase("score"):
            rewards = self.score(batch, texts)
        return RolloutBatch(
            prompts=batch.prompts,
            weights=weights,
            prompt_ids=prompt_ids,
            completion_ids=[tuple(c.token_ids for c in pair) for pair in sampled],
            completions=texts,
            finished=torch.tensor([[c.finished for c in pair] for pair in sampled]),
            rewards=rewards,
        )

    def _draw(self, seeds: Sequence[int]) -> Tensor:
        if self.draw is not None:
            return self.draw(seeds)
        return draw_weights(self.concentration, len(self.conditioner.objectives), seeds)

    def score(self, batch: PromptBatch, texts: Sequence[Sequence[str]]) -> Tensor:
        """Raw rewards `[B, 2, K]` of interleaved completions, one pass per reward."""
        repeat = range(NUM_COMPLETIONS)
        flat = self.panel.score(
            [prompt for prompt in batch.prompts for _ in repeat],
            [text for pair in texts for text in pair],
            {name: [v for v in values for _ in repeat] for name, values in batch.columns.items()},
        )  # [B * 2, K]
        return flat.view(len(batch), NUM_COMPLETIONS, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """What became of B prompts' pairs, as counts over the P = B or 2B labeled pairs."""

    labeled: int
    active: int
    ties: int
    duplicates: int
    undefined: int
    relabeled: int  # pairs active under both their own and the opposite weights
    flipped: int  # of those, how many have another winner under the opposite weights


def build_pairs(
    rollout: RolloutBatch,
    *,
    normalizer: Normalizer,
    scalarization: Scalarization,
    relabel: str,
    encode: Callable[[Prompt, Tensor], TokenIds],
) -> tuple[PairBatch, PairStatistics]:
    """Labels each prompt's two completions; with relabeling, also under the opposite weights.

    The K rewards of a pair are known whatever the weights, so the same two completions teach
    under any others too: where objectives conflict on the pair, the winner flips, the weight-blind
    part of the two gradients cancels, and what depends on the weights remains. (Ours.)

    Args:
        rollout: B prompts with raw rewards.
        normalizer: Puts objectives on one scale.
        scalarization: `linear` or `chebyshev`.
        relabel: `none` or `antithetic`.
        encode: Conditions a raw prompt on weights `[K]`, for relabeled prompts.

    Returns:
        The active pairs, and counts of all.
    """
    rewards = normalizer.normalize(rollout.rewards)  # [B, 2, K]
    duplicates = torch.tensor([first == second for first, second in rollout.completion_ids])
    labelings = [rollout.weights]
    if relabel == "antithetic":
        labelings.append(antithetic_weights(rollout.weights))
    pairings, utilities = [], []
    for weights in labelings:
        utility = scalarize(rewards, weights, scalarization)  # [B, 2]
        utilities.append(utility)
        pairings.append(pair_completions(utility, duplicates=duplicates))
    prompt_ids: list[TokenIds] = []
    completion_ids, rows, orders = [], [], []
    for labeling, pairing in enumerate(pairings):
        for row in pairing.active.nonzero().flatten().tolist():
            weights = labelings[labeling][row]
            prompt_ids.append(
                encode(rollout.prompts[row], weights) if labeling else rollout.prompt_ids[row]
            )
            first, second = order = pairing.order()[row].tolist()
            pair = rollout.completion_ids[row]
            completion_ids.append((pair[first], pair[second]))
            rows.append(row)
            orders.append((labeling, row, order))
    batch = PairBatch(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        weights=_stack([labelings[n][r] for n, r, _ in orders], rollout.weights[:0]),
        rewards=_stack([rollout.rewards[r][o] for _, r, o in orders], rollout.rewards[:0]),
        utilities=_stack([utilities[n][r][o] for n, r, o in orders], utilities[0][:0]),
        rows=torch.tensor(rows, dtype=torch.long),
        relabeled=torch.tensor([n > 0 for n, _, _ in orders], dtype=torch.bool),
    )
    return batch, _statistics(pairings)


def _stack(rows: Sequence[Tensor], empty: Tensor) -> Tensor:
    return torch.stack(list(rows)) if rows else empty


def _statistics(pairings: Sequence[Pairing]) -> PairStatistics:
    def count(name: str) -> int:
        return sum(int(getattr(p, name).sum()) for p in pairings)

    both = torch.stack([p.active for p in pairings]).all(dim=0)
    flips = (pairings[0].chosen != pairings[-1].chosen) & both
    relabeled = len(pairings) > 1
    return PairStatistics(
        labeled=sum(len(p.active) for p in pairings),
        active=count("active"),
        ties=count("ties"),
        duplicates=count("duplicates"),
        undefined=count("undefined"),
        relabeled=int(both.sum()) if relabeled else 0,
        flipped=int(flips.sum()) if relabeled else 0,
    )
