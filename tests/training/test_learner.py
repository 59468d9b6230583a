"""Labels, reference, passes and loss; whole steps are in test_trainer."""

import torch

from moodpo.core.loss import dpo_loss
from tiny_trainers import PROMPTS, make_trainer


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
