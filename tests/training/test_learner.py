"""Labels, reference, passes and loss; whole steps are in test_trainer."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moodpo.core.loss import dpo_loss
from moodpo.training.learner import by_token_budget, spread_over_passes
from tiny_trainers import PROMPTS, make_trainer

LENGTHS = st.lists(st.integers(1, 50), max_size=20)


def learn(tmp_path, **settings):
    """A learner and the referenced pairs of four prompts."""
    trainer = make_trainer(tmp_path, reward_normalization="none", **settings)
    prompts = trainer.processes.prompt_batch([{"prompts": PROMPTS[:4], "columns": {}}])
    with torch.no_grad():
        rollout = trainer.collector.collect(prompts, key=(0, "train", 0))
    pairs, statistics = trainer.learner.label(rollout)
    assert statistics.active == len(pairs) > 2
    return trainer, trainer.learner.with_reference(pairs)


def test_passes_share_the_pairs_and_their_losses_add_up_to_the_mean(tmp_path):
    trainer, pairs = learn(tmp_path)
    learner = trainer.learner
    passes = learner.passes(pairs, 3)
    assert len(passes) == 3
    assert sum(len(each.pairs) for each in passes) == len(pairs)
    parts = [learner.loss(trainer.model, each)[0] for each in passes if each.tokens is not None]
    whole, scored = learner.loss(trainer.model, learner.micro_batch(pairs, range(len(pairs)), 1.0))
    torch.testing.assert_close(sum(parts), whole / len(pairs))
    expected = dpo_loss(scored.logps.view(-1, 2), pairs.ref_logps, beta=0.1)
    torch.testing.assert_close(whole, expected.sum())


def test_more_passes_than_pairs_leave_some_empty(tmp_path):
    trainer, pairs = learn(tmp_path)
    passes = trainer.learner.passes(pairs.select([0]), 4)
    assert [each.tokens is None for each in passes] == [True, True, True, False]
    assert {each.scale for each in passes} == {1.0}


def test_the_reference_of_an_untrained_policy_is_the_policy(tmp_path):
    trainer, pairs = learn(tmp_path)
    batch = trainer.learner.micro_batch(pairs, range(len(pairs)), 1.0)
    trainer.model.eval()
    _, scored = trainer.learner.loss(trainer.model, batch)
    torch.testing.assert_close(scored.logps.view(-1, 2).detach(), pairs.ref_logps)


def test_soft_labels_are_as_sure_as_the_gap_is_wide(tmp_path):
    trainer, pairs = learn(tmp_path, label_temperature=0.5)
    batch = trainer.learner.micro_batch(pairs, range(len(pairs)), 1.0)
    total, scored = trainer.learner.loss(trainer.model, batch)
    sure = torch.sigmoid((pairs.utilities[:, 0] - pairs.utilities[:, 1]) / 0.5)
    logps = scored.logps.view(-1, 2)
    right = dpo_loss(logps, pairs.ref_logps, beta=0.1)
    wrong = dpo_loss(logps.flip(-1), pairs.ref_logps.flip(-1), beta=0.1)
    torch.testing.assert_close(total, (sure * right + (1 - sure) * wrong).sum())


def test_a_budget_by_hand():
    assert list(by_token_budget([5, 2, 9, 3], 9)) == [[1, 3], [0], [2]]
    assert list(by_token_budget([], 9)) == []


def test_passes_by_hand():
    assert spread_over_passes([5, 2, 9, 3], 2) == [[1, 3], [0, 2]]
    assert spread_over_passes([5, 2], 3) == [[], [1], [0]]
    assert spread_over_passes([], 2) == [[], []]


def test_pairs_share_passes_within_a_budget():
    # In one pass 4 x 9 tokens, in two 2 x 9, in three at most 2 x 9 again.
    assert spread_over_passes([5, 2, 9, 3], 4, budget=36) == [[], [], [], [1, 3, 0, 2]]
    assert spread_over_passes([5, 2, 9, 3], 4, budget=35) == [[], [], [1, 3], [0, 2]]
    assert spread_over_passes([5, 2, 9, 3], 4, budget=1) == spread_over_passes([5, 2, 9, 3], 4)


def test_pairs_of_a_group_stay_together():
    assert spread_over_passes([5, 2, 9, 3], 2, groups=[0, 1, 1, 0]) == [[3, 0], [1, 2]]
    assert spread_over_passes([5, 2, 9, 3], 4, groups=[7] * 4) == [[], [], [], [1, 3, 0, 2]]


@given(LENGTHS, st.integers(1, 60))
def test_groups_hold_every_pair_once_within_the_budget(lengths, budget):
    groups = list(by_token_budget(lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


@given(LENGTHS, st.integers(1, 6), st.none() | st.integers(1, 400), st.integers(1, 20))
def test_passes_hold_every_pair_once_and_the_last_is_filled_first(
    lengths, num_passes, budget, num_groups
):
    groups = [i % num_groups for i in range(len(lengths))]
    passes = spread_over_passes(lengths, num_passes, groups=groups, budget=budget)
    owners = [{groups[i] for i in rows} for rows in passes]
    assert sum(map(len, owners)) == len(set(groups))
    assert len(passes) == num_passes
    assert sorted(i for rows in passes for i in rows) == list(range(len(lengths)))
    assert bool(passes[-1]) == bool(lengths)
    used = [rows for rows in passes if rows]
    if budget is not None and len(used) < min(num_passes, len(set(groups))):
        assert all(len(rows) * max(lengths[i] for i in rows) <= budget for rows in used)
