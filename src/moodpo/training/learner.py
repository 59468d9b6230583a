"""Learner: rollout → pairs → reference → passes → loss. No Trainer in it, and no clock.

Shapes: B prompts, P training pairs of the optimizer step, R passes, p pairs of one pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from moodpo.choices import Scalarization
from moodpo.core.loss import imitation_loss, voted_loss
from moodpo.core.pairing import preference_probabilities
from moodpo.core.tokens import TokenBatch
from moodpo.models.logps import CompletionLogps, completion_logps
from moodpo.models.modes import evaluating
from moodpo.records import PairBatch, RolloutBatch
from moodpo.rewards.normalize import Normalizer
from moodpo.training.config import MOODPOConfig
from moodpo.training.pairs import Encode, PairStatistics, build_pairs
from moodpo.training.parallel import Processes
from moodpo.training.paths import FastPaths
from moodpo.training.reference import Reference

__all__ = ["Learner", "MicroBatch", "by_token_budget", "spread_over_passes"]

REFERENCE_TOKENS = 16_384  # tokens of one no-grad forward pass
# Tokens of one training pass with activation checkpointing, where one hidden state per token and
# block is kept: fewer bytes than one pair takes without.
CHECKPOINTED_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What one forward and backward pass needs."""

    tokens: TokenBatch | None  # None when the optimizer step has fewer active pairs than passes
    pairs: PairBatch  # p of them
    scale: float  # 1 / active pairs of the whole optimizer step, over all processes


@dataclass(kw_only=True)
class Learner:
    """What is learned from a rollout, and how.

    Attributes:
        args: The settings.
        reference: What the policy is held close to.
        normalizer: Puts objectives on one scale.
        encode: Conditions a prompt on weights that it was not sampled under.
        pad_token_id: Fills shorter sequences; masked.
        paths: What may be computed faster with the same result, of the policy.
        reference_paths: The same of the reference.
        processes: Those that share the step.
        autocast: The mixed precision that the policy is trained in.
    """

    args: MOODPOConfig
    reference: Reference
    normalizer: Normalizer
    encode: Encode
    pad_token_id: int
    paths: FastPaths
    reference_paths: FastPaths
    processes: Processes
    autocast: Callable[[], AbstractContextManager[Any]]

    def observe(self, rollout: RolloutBatch) -> None:
        """Shows training's rewards to a normalizer that goes on learning, of all processes."""
        if self.args.reward_normalization == "running" or self.args.scalarization == "chebyshev":
            self.normalizer.observe(self.processes.gather(rollout.rewards).flatten(0, 2))

    def label(self, rollout: RolloutBatch) -> tuple[PairBatch, PairStatistics]:
        """The active pairs of each prompt under each of its weights, and counts of all."""
        return build_pairs(
            rollout,
            normalizer=self.normalizer,
            scalarization=cast(Scalarization, self.args.scalarization),
            encode=self.encode,
        )

    @torch.no_grad()
    def with_reference(self, pairs: PairBatch) -> PairBatch:
        """The same pairs with log-probabilities `[P, 2]` under the reference.

        In as few passes as memory allows.
        """
        result = torch.zeros(len(pairs), 2, device=self.processes.device)
        paths = self.reference_paths
        lengths = paths.lengths(pairs.prompt_ids, pairs.completion_ids)
        with self.reference.active() as model, self.autocast(), evaluating(model):
            for rows in by_token_budget(lengths, REFERENCE_TOKENS):
                scored = completion_logps(
                    model,
                    self._tokens(pairs, rows, paths),
                    linear_head=paths.linear_head,
                    with_entropies=False,
                    temperature=self.args.temperature,
                )
                result[rows] = scored.logps.view(-1, 2)
        return replace(pairs, ref_logps=result)

    def passes(self, pairs: PairBatch, count: int) -> list[MicroBatch]:
        """Spreads active pairs over as many passes as the Trainer will make.

        Args:
            pairs: P of this process, with reference log-probabilities.
            count: R.

        Returns:
            R micro-batches. The sum of their losses is the mean over the pairs of all processes:
            gradients are averaged over processes, the loss over all their pairs.
        """
        scale = self.processes.count / max(self.processes.total(len(pairs)), 1.0)
        budget = CHECKPOINTED_TOKENS if self.args.activation_checkpointing else None
        lengths = self.paths.lengths(pairs.prompt_ids, pairs.completion_ids)
        # A prompt's labelings stay together: they are compared with each other.
        parts = spread_over_passes(lengths, count, groups=pairs.rows.tolist(), budget=budget)
        return [self.micro_batch(pairs, rows, scale) for rows in parts]

    def micro_batch(self, pairs: PairBatch, rows: Sequence[int], scale: float) -> MicroBatch:
        """The pairs at the given rows, as one pass takes them."""
        return MicroBatch(
            tokens=self._tokens(pairs, rows, self.paths) if rows else None,
            pairs=pairs.select(rows).to(self.processes.device),
            scale=scale,
        )

    def loss(self, model: nn.Module, batch: MicroBatch) -> tuple[Tensor, CompletionLogps]:
        """The sum over a micro-batch's pairs, scaled for the whole optimizer step.

        Args:
            model: The policy, possibly wrapped for several processes.
            batch: With at least one pair.

        Returns:
            The loss, a scalar, and the policy's log-probabilities of the 2p completions.
        """
        assert batch.tokens is not None
        assert batch.pairs.ref_logps is not None
        args, pairs = self.args, batch.pairs
        # The policy is what samples: log-probabilities of another temperature would call its own
        # completions unlikely, and their likelihood alone (`rpo_alpha`) would sharpen it each step.
        scored = completion_logps(
            model, batch.tokens, linear_head=self.paths.linear_head, temperature=args.temperature
        )
        policy_logps, lengths = scored.logps.view(-1, 2), scored.lengths.view(-1, 2)
        first, second = pairs.utilities.unbind(-1)  # [p]
        gaps = torch.stack([first - second, second - first], dim=-1)  # [p, 2]
        losses = voted_loss(
            policy_logps,
            batch.pairs.ref_logps,
            lengths,
            preference_probabilities(gaps, args.label_temperature),
            loss_type=args.loss_type,
            beta=args.beta,
            label_smoothing=args.label_smoothing,
        )  # [p]
        total = losses.sum()
        if args.rpo_alpha:
            total = total + args.rpo_alpha * imitation_loss(policy_logps, lengths).sum()
        return total * batch.scale, scored

    def _tokens(self, pairs: PairBatch, rows: Sequence[int], paths: FastPaths) -> TokenBatch:
        batch = paths.collate(
            [pairs.prompt_ids[i] for i in rows],
            [pairs.completion_ids[i] for i in rows],
            pad_token_id=self.pad_token_id,
        )
        return batch.to(self.processes.device)


# ---- Which pairs share a forward pass: pure functions of their lengths in tokens ----


def by_token_budget(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Groups pairs that are alike in length, as few groups as a budget of tokens allows.

    Args:
        lengths: P lengths.
        budget: Largest padded size of a group, in tokens; a longer pair is a group by itself.

    Yields:
        Indices of pairs, from the shortest pairs to the longest.
    """
    group: list[int] = []
    for index in _by_length(lengths):
        if group and lengths[index] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def spread_over_passes(
    lengths: Sequence[int],
    num_passes: int,
    *,
    groups: Sequence[int] | None = None,
    budget: int | None = None,
) -> list[list[int]]:
    """Spreads pairs over a given number of passes, alike in length.

    The last passes are filled first: gradients are synchronized in the last one, so that is the
    one that must not be empty if there is any pair.

    Args:
        lengths: P lengths.
        num_passes: How many passes there will be, at least 1.
        groups: P numbers; pairs with the same one stay in the same pass. By default all differ.
        budget: With one, as few passes are used as keep the padded size of each within so many
            tokens; the others stay empty, and cost nothing.

    Returns:
        `num_passes` lists of indices.
    """
    units = _units(lengths, range(len(lengths)) if groups is None else groups)
    used = num_passes
    if budget is not None:
        fits = (n for n in range(1, num_passes) if _largest(lengths, units, n) <= budget)
        used = next(fits, num_passes)
    return [[] for _ in range(num_passes - used)] + _split(units, used)


def _by_length(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def _units(lengths: Sequence[int], groups: Sequence[int]) -> list[list[int]]:
    """Indices by group, from the group of the shortest longest pair on."""
    members: dict[int, list[int]] = {}
    for index in _by_length(lengths):
        members.setdefault(groups[index], []).append(index)
    return sorted(members.values(), key=lambda unit: lengths[unit[-1]])


def _split(units: list[list[int]], parts: int) -> list[list[int]]:
    bounds = [len(units) * i // parts for i in range(parts + 1)]
    return [[i for unit in units[a:b] for i in unit] for a, b in itertools.pairwise(bounds)]


def _largest(lengths: Sequence[int], units: list[list[int]], parts: int) -> int:
    """Padded size in tokens of the largest of so many parts."""
    return max(len(part) * lengths[part[-1]] if part else 0 for part in _split(units, parts))
