from dataclasses import fields, replace

import pytest
import torch

from moodpo.core.simplex import antithetic_weights
from moodpo.records import Completion, RolloutBatch
from moodpo.rewards.normalize import Normalizer
from moodpo.training.pairs import (
    build_pairs,
    identities,
)

NAN = float("nan")


def completion(*token_ids):
    return Completion(token_ids, finished=True)


def make_rollout(rewards, weights, completion_ids=None, relabel="none"):
    """Prompts under one weight vector each, and two completions."""
    size = len(weights)
    labels = torch.tensor(weights)[:, None]  # [B, 1, K]
    if relabel == "antithetic":
        labels = torch.cat([labels, antithetic_weights(labels)], dim=1)
    completion_ids = completion_ids or [((10 + i,), (20 + i,)) for i in range(size)]
    return RolloutBatch(
        prompts=[f"p{i}" for i in range(size)],
        labels=labels,
        prompt_ids=[((i,),) for i in range(size)],
        completions=[(tuple(completion(*ids) for ids in pair),) for pair in completion_ids],
        texts=[(("a", "b"),)] * size,
        rewards=torch.tensor(rewards)[:, None],
    )


def build(rollout, scalarization="linear"):
    return build_pairs(
        rollout,
        normalizer=Normalizer("none", 2),
        scalarization=scalarization,
        encode=lambda prompt, weights: (
            int(prompt[1:]),
            *(round(w * 100) for w in weights.tolist()),
        ),
    )


def test_pairs_by_hand():
    # Under (0.9, 0.1) the first objective decides, under (0.1, 0.9) the second; they conflict.
    rollout = make_rollout([[[1.0, 0.0], [0.0, 1.0]]] * 2, [[0.9, 0.1], [0.1, 0.9]])
    pairs, statistics = build(rollout)
    assert pairs.completion_ids == [((10,), (20,)), ((21,), (11,))]
    assert pairs.prompt_ids == [(0,), (1,)]
    torch.testing.assert_close(pairs.utilities, torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    assert pairs.rewards[1].tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert (statistics.active, statistics.labeled, statistics.relabeled) == (2, 2, 0)


def test_antithetic_pairs_train_the_same_completions_the_other_way_round():
    rollout = make_rollout([[[1.0, 0.0], [0.0, 1.0]]], [[0.9, 0.1]], relabel="antithetic")
    pairs, statistics = build(rollout)
    assert pairs.completion_ids == [((10,), (20,)), ((20,), (10,))]
    assert pairs.prompt_ids == [(0,), (0, 10, 90)]  # its own prompt, under the opposite weights
    assert pairs.relabeled.tolist() == [[False, False], [True, True]]
    torch.testing.assert_close(pairs.weights, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    assert (statistics.labeled, statistics.relabeled, statistics.flipped) == (2, 1, 1)


def test_objectives_that_agree_do_not_flip():
    rollout = make_rollout([[[1.0, 1.0], [0.0, 0.0]]], [[0.9, 0.1]], relabel="antithetic")
    pairs, statistics = build(rollout)
    assert pairs.completion_ids == [((10,), (20,))] * 2
    assert (statistics.relabeled, statistics.flipped) == (1, 0)


def test_pairs_without_a_winner_are_counted_and_never_trained():
    rollout = make_rollout(
        [
            [[1.0, 0.0], [0.0, 1.0]],  # a tie at even weights
            [[NAN, 0.0], [0.0, 1.0]],  # undefined
            [[1.0, 0.0], [0.0, 0.0]],  # the same tokens
            [[1.0, 0.0], [0.0, 0.0]],
        ],
        [[0.5, 0.5]] * 4,
        [((1,), (2,)), ((3,), (4,)), ((5,), (5,)), ((6,), (7,))],
    )
    pairs, statistics = build(rollout)
    assert pairs.rows.tolist() == [3]
    counts = (statistics.active, statistics.ties, statistics.undefined, statistics.duplicates)
    assert counts == (1, 1, 1, 1)


@pytest.mark.parametrize("relabel", ["none", "antithetic"])
def test_a_batch_without_any_winner_gives_an_empty_batch(relabel):
    rollout = make_rollout([[[0.0, 0.0], [0.0, 0.0]]] * 2, [[0.5, 0.5]] * 2, relabel=relabel)
    pairs, statistics = build(rollout)
    assert len(pairs) == 0
    assert pairs.utilities.shape == (0, 2)
    assert pairs.rewards.shape == (0, 2, 2)
    assert statistics.active == 0


def test_identities_by_hand():
    assert identities([((1,), (2,), (1,)), ((3,), (3,), (4,))]).tolist() == [[0, 1, 0], [0, 0, 2]]


def spread(rewards, weights, *, further=()):
    """A rollout of one prompt sampled under several weight vectors."""
    rows, size = len(weights), len(rewards[0])
    return RolloutBatch(
        prompts=["p0"],
        labels=torch.tensor([[*weights, *further]]),
        prompt_ids=[tuple((100 + i,) for i in range(rows))],
        completions=[
            tuple(tuple(completion(10 * i + j) for j in range(size)) for i in range(rows))
        ],
        texts=[(("a",) * size,) * rows],
        rewards=torch.tensor([rewards]),
    )


def test_completions_of_all_weights_compete_under_each():
    # Sampled under (1, 0): rewards (0, 1) and (2, 0); under (0, 1): (1, 3) and (3, 2).
    rollout = spread(
        [[[0.0, 1.0], [2.0, 0.0]], [[1.0, 3.0], [3.0, 2.0]]],
        [[1.0, 0.0], [0.0, 1.0]],
        further=[[0.5, 0.5]],
    )
    pairs, statistics = build(rollout)
    # The first objective: 3 against 0; the second: 3 against 0; both: 2.5 against 0.5.
    assert pairs.candidates.tolist() == [[3, 0], [2, 1], [3, 0]]
    assert pairs.completion_ids == [((11,), (0,)), ((10,), (1,)), ((11,), (0,))]
    assert pairs.prompt_ids == [(100,), (101,), (0, 50, 50)]
    assert pairs.rows.tolist() == [0, 0, 0]
    assert pairs.utilities.tolist() == [[3.0, 0.0], [3.0, 0.0], [2.5, 0.5]]
    # The first vector sampled its pair's worst, the second its pair's best, the third neither.
    assert pairs.relabeled.tolist() == [[True, False], [False, True], [True, True]]
    assert (statistics.labeled, statistics.relabeled, statistics.flipped) == (3, 2, 1)


def test_completions_from_their_own_weights_are_not_relabeled():
    rollout = spread(
        [[[5.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]],
        [[1.0, 0.0], [0.9, 0.1]],
    )
    pairs, _ = build(rollout)
    assert pairs.candidates.tolist() == [[0, 1], [0, 1]]
    assert pairs.relabeled.tolist() == [[False, False], [True, True]]


def test_pairs_move_with_all_their_tensors():
    pairs, _ = build(make_rollout([[[1.0, 0.0], [0.0, 1.0]]], [[0.9, 0.1]]))
    moved = replace(pairs, ref_logps=torch.zeros(1, 2)).to("meta")
    tensors = [getattr(moved, f.name) for f in fields(moved)]
    assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"meta"}


def test_selected_pairs_keep_all_their_fields():
    rollout = make_rollout([[[1.0, 0.0], [0.0, 1.0]]] * 2, [[0.9, 0.1], [0.2, 0.8]])
    pairs, _ = build(rollout)
    second = pairs.select([1]).to("cpu")
    assert second.candidates.tolist() == [[1, 0]]
    assert second.rows.tolist() == [1]
    assert second.prompt_ids == [(1,)]


def test_chebyshev_measures_from_the_best_seen():
    # Under even weights the sums tie at 1.1 to 1.0 for the extreme; the middle regrets less.
    rollout = make_rollout([[[1.1, 0.0], [0.5, 0.5]]], [[0.5, 0.5]])
    normalizer = Normalizer("none", 2)
    normalizer.observe(torch.tensor([[1.1, 1.0]]))
    options = {"encode": lambda *_: (0,), "normalizer": normalizer}
    linear, _ = build_pairs(rollout, scalarization="linear", **options)
    chebyshev, _ = build_pairs(rollout, scalarization="chebyshev", **options)
    assert linear.candidates.tolist() == [[0, 1]]
    assert chebyshev.candidates.tolist() == [[1, 0]]
