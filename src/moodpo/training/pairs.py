"""Pairs: scored completions → training pairs, each under the weights it is labeled with.

The rewards of a prompt's completions are known whatever the weights, so the same completions teach
under any of them: every labeling is a weight vector with its own conditioned prompt, its own best
and its own worst. No Trainer in it, and no model.
Shapes: B prompts, M weight vectors each is sampled under, N more it is labeled under, L = M + N
labelings, G completions of a prompt, K objectives, P training pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moodpo.core.pairing import (
    Pairing,
    objective_votes,
    pair_completions,
    preference_probabilities,
)
from moodpo.core.scalarization import Scalarization, scalarize
from moodpo.records import PairBatch, Prompt, RolloutBatch, TokenIds
from moodpo.rewards.normalize import Normalizer

__all__ = [
    "PairStatistics",
    "build_pairs",
    "identities",
    "label_utilities",
    "label_weights",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatistics:
    """What became of the B prompts' L labelings each, as counts."""

    labeled: int
    active: int
    ties: int
    duplicates: int
    undefined: int
    relabeled: int  # pairs active under their prompt's first weights and under others
    flipped: int  # of those, how many have another winner under the others


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """All completions of each prompt, whatever weights they were sampled under."""

    token_ids: list[tuple[TokenIds, ...]]  # B x G
    rewards: Tensor  # [B, G, K] raw
    normalized: Tensor  # [B, G, K]
    identities: Tensor  # [B, G] int64: the same number for the same tokens

    @property
    def size(self) -> int:
        """G."""
        return self.rewards.shape[1]


def identities(token_ids: Sequence[Sequence[TokenIds]]) -> Tensor:
    """Numbers `[B, G]` that are equal where completions of a prompt are the same tokens."""
    return torch.tensor([[row.index(ids) for ids in row] for row in token_ids])


def label_weights(rollout: RolloutBatch) -> Tensor:
    """The weights of all labelings of each prompt `[B, L, K]`: first those it was sampled under."""
    M, K = rollout.weights_per_prompt, rollout.weights.shape[-1]
    sampled = rollout.weights.view(-1, M, K)  # [B, M, K]
    if rollout.relabel_weights is None:
        return sampled
    return torch.cat([sampled, rollout.relabel_weights], dim=1)


def label_utilities(
    rewards: Tensor,
    labels: Tensor,
    *,
    normalizer: Normalizer,
    scalarization: Scalarization,
) -> Tensor:
    """What each completion is worth under every weight vector of its prompt.

    Args:
        rewards: `[B, G, K]` raw.
        labels: `[B, L, K]` weights.
        normalizer: Puts objectives on one scale.
        scalarization: `linear` or `chebyshev`.

    Returns:
        Utilities `[B, L, G]`.
    """
    normalized = normalizer.normalize(rewards)
    return scalarize(
        normalized[:, None].expand(-1, labels.shape[1], -1, -1).flatten(0, 1),
        labels.flatten(0, 1),
        scalarization,
        ideal=normalizer.ideal(),
    ).view(*labels.shape[:2], -1)  # [B, L, G]


def build_pairs(
    rollout: RolloutBatch,
    *,
    normalizer: Normalizer,
    scalarization: Scalarization,
    encode: Callable[[Prompt, Tensor], TokenIds],
    pairing: str = "scalarize",
    label_temperature: float = 0.0,
) -> tuple[PairBatch, PairStatistics]:
    """Labels each prompt's completions under all its weights: the best against the worst.

    Where objectives conflict on a pair, the winner flips from one labeling to the other, the
    weight-blind part of the two gradients cancels, and what depends on the weights remains. (Ours.)

    Args:
        rollout: B prompts with raw rewards.
        normalizer: Puts objectives on one scale.
        scalarization: `linear` or `chebyshev`.
        encode: Conditions a raw prompt on weights `[K]` that it was not sampled under.
        pairing: `scalarize`, or `per_objective` (G = 2 only): each objective votes for its winner
            with its weight, see `objective_votes`.
        label_temperature: T of `preference_probabilities`, in units of utility; 0 has one winner.

    Returns:
        The active pairs, labeling by labeling, and counts of all.
    """
    if not len(rollout):
        return _no_pairs(rollout.rewards.shape[-1]), _statistics([])
    pool = _pool(rollout, normalizer)
    labels = label_weights(rollout)  # [B, L, K]
    utilities = label_utilities(
        pool.rewards,
        labels,
        normalizer=normalizer,
        scalarization=scalarization,
    )  # [B, L, G]
    pairings, votes = _pair(pool, labels, utilities, pairing, label_temperature)
    active = torch.stack([p.active for p in pairings])  # [L, B]
    order = torch.stack([p.order() for p in pairings])  # [L, B, 2]
    indices, rows = active.nonzero(as_tuple=True)  # [P] labelings and prompts
    candidates = order[indices, rows]  # [P, 2]
    own = candidates // (pool.size // rollout.weights_per_prompt) == indices[:, None]  # [P, 2]
    return PairBatch(
        prompt_ids=[
            _prompt_ids(rollout, row, index, labels, encode)
            for index, row in zip(indices.tolist(), rows.tolist(), strict=True)
        ],
        completion_ids=[
            (pool.token_ids[row][best], pool.token_ids[row][worst])
            for row, (best, worst) in zip(rows.tolist(), candidates.tolist(), strict=True)
        ],
        weights=labels[rows, indices],
        rewards=pool.rewards[rows[:, None], candidates],
        utilities=utilities[rows[:, None], indices[:, None], candidates],
        votes=votes[indices, rows],
        rows=rows,
        labelings=indices,
        candidates=candidates,
        relabeled=~own,
    ), _statistics(pairings)


def _no_pairs(num_objectives: int) -> PairBatch:
    none = torch.zeros(0, dtype=torch.int64)
    return PairBatch(
        prompt_ids=[],
        completion_ids=[],
        weights=torch.zeros(0, num_objectives),
        rewards=torch.zeros(0, 2, num_objectives),
        utilities=torch.zeros(0, 2),
        votes=torch.zeros(0, 2),
        rows=none,
        labelings=none,
        candidates=none.view(0, 2),
        relabeled=torch.zeros(0, 2, dtype=torch.bool),
    )


def _pool(rollout: RolloutBatch, normalizer: Normalizer) -> _Candidates:
    """Brings the completions of a prompt together, in the order of its rows."""
    M = rollout.weights_per_prompt
    _, size, K = rollout.rewards.shape
    rewards = rollout.rewards.reshape(-1, M * size, K)  # [B, G, K]
    rows = range(0, len(rollout), M)
    token_ids = [tuple(c for ids in rollout.completion_ids[i : i + M] for c in ids) for i in rows]
    return _Candidates(
        token_ids=token_ids,
        rewards=rewards,
        normalized=normalizer.normalize(rewards),
        identities=identities(token_ids),
    )


def _pair(
    pool: _Candidates, labels: Tensor, utilities: Tensor, pairing: str, temperature: float
) -> tuple[list[Pairing], Tensor]:
    """The pairing of every labeling, and its votes `[L, B, 2]`."""
    pairings, votes = [], []
    for weights, scores in zip(labels.unbind(1), utilities.unbind(1), strict=True):
        if pairing == "per_objective":
            ballots = objective_votes(pool.normalized, weights, temperature)  # [B, 2]
            chosen = pair_completions(ballots, identities=pool.identities)
            ballots = ballots.gather(1, chosen.order())
        else:
            chosen = pair_completions(scores, identities=pool.identities)
            first, second = scores.gather(1, chosen.order()).unbind(-1)  # [B]
            gaps = torch.stack([first - second, second - first], dim=-1)  # [B, 2]
            ballots = preference_probabilities(gaps, temperature)
        pairings.append(chosen)
        votes.append(ballots)
    return pairings, torch.stack(votes)


def _prompt_ids(
    rollout: RolloutBatch,
    row: int,
    index: int,
    labels: Tensor,
    encode: Callable[[Prompt, Tensor], TokenIds],
) -> TokenIds:
    """The prompt conditioned on the weights of a labeling: as it was sampled, or written anew."""
    first = row * rollout.weights_per_prompt
    if index < rollout.weights_per_prompt:
        return rollout.prompt_ids[first + index]
    return encode(rollout.prompts[first], labels[row, index])


def _statistics(pairings: list[Pairing]) -> PairStatistics:
    def count(name: str) -> int:
        return sum(int(getattr(p, name).sum()) for p in pairings)

    others = pairings[1:]
    both = [pairings[0].active & other.active for other in others]
    flips = [(pairings[0].chosen != o.chosen) & b for o, b in zip(others, both, strict=True)]
    return PairStatistics(
        labeled=sum(len(p.active) for p in pairings),
        active=count("active"),
        ties=count("ties"),
        duplicates=count("duplicates"),
        undefined=count("undefined"),
        relabeled=sum(int(b.sum()) for b in both),
        flipped=sum(int(f.sum()) for f in flips),
    )
