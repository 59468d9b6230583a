"""Pairs: scored completions → training pairs, each under the weights it is labeled with.

The rewards of a prompt's completions are known whatever the weights, so the same completions teach
under any of them: every labeling is a weight vector with its own conditioned prompt, its own best
and its own worst. No Trainer in it, and no model.
Shapes: B prompts, M weight vectors each is sampled under, L labelings of each, G completions of a
prompt, K objectives, P training pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moodpo.choices import Scalarization
from moodpo.core.pairing import Pairing, pair_completions
from moodpo.core.scalarization import scalarize
from moodpo.records import PairBatch, Prompt, RolloutBatch, TokenIds
from moodpo.rewards.normalize import Normalizer

__all__ = ["Encode", "PairStatistics", "build_pairs", "identities", "label_utilities"]

Encode = Callable[[Prompt, Tensor], TokenIds]
"""Conditions a raw prompt on weights `[K]`."""


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


def identities(token_ids: Sequence[Sequence[TokenIds]]) -> Tensor:
    """Numbers `[B, G]` that are equal where completions of a prompt are the same tokens."""
    return torch.tensor([[row.index(ids) for ids in row] for row in token_ids])


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
    encode: Encode,
) -> tuple[PairBatch, PairStatistics]:
    """Labels each prompt's completions under all its weights: the best against the worst.

    Where objectives conflict on a pair, the winner flips from one labeling to the other, the
    weight-blind part of the two gradients cancels, and what depends on the weights remains. (Ours.)

    Args:
        rollout: B prompts with raw rewards.
        normalizer: Puts objectives on one scale.
        scalarization: `linear` or `chebyshev`.
        encode: For weights that a prompt was not sampled under.

    Returns:
        The active pairs, labeling by labeling, and counts of all.
    """
    if not len(rollout):
        return _no_pairs(rollout.rewards.shape[-1]), _statistics([])
    labels, rewards = rollout.labels, rollout.rewards.flatten(1, 2)  # [B, L, K], [B, G, K]
    utilities = label_utilities(
        rewards,
        labels,
        normalizer=normalizer,
        scalarization=scalarization,
    )  # [B, L, G]
    token_ids = [[c.token_ids for c in row] for row in rollout.candidates]  # B x G
    same = identities(token_ids)
    pairings = [pair_completions(scores, identities=same) for scores in utilities.unbind(1)]
    active = torch.stack([p.active for p in pairings])  # [L, B]
    order = torch.stack([p.order() for p in pairings])  # [L, B, 2]
    indices, rows = active.nonzero(as_tuple=True)  # [P] labelings and prompts
    candidates = order[indices, rows]  # [P, 2]
    own = candidates // rollout.rewards.shape[2] == indices[:, None]  # [P, 2]
    return PairBatch(
        prompt_ids=[
            _prompt_ids(rollout, row, index, encode)
            for index, row in zip(indices.tolist(), rows.tolist(), strict=True)
        ],
        completion_ids=[
            (token_ids[row][best], token_ids[row][worst])
            for row, (best, worst) in zip(rows.tolist(), candidates.tolist(), strict=True)
        ],
        weights=labels[rows, indices],
        rewards=rewards[rows[:, None], candidates],
        utilities=utilities[rows[:, None], indices[:, None], candidates],
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
        rows=none,
        labelings=none,
        candidates=none.view(0, 2),
        relabeled=torch.zeros(0, 2, dtype=torch.bool),
    )


def _prompt_ids(rollout: RolloutBatch, row: int, index: int, encode: Encode) -> TokenIds:
    """The prompt conditioned on the weights of a labeling: as it was sampled, or written anew."""
    sampled = rollout.prompt_ids[row]
    if index < len(sampled):
        return sampled[index]
    return encode(rollout.prompts[row], rollout.labels[row, index])


def _statistics(pairings: Sequence[Pairing]) -> PairStatistics:
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
