"""Does the whole of it learn to obey weights? Small policies, real training, seeded."""

import pytest
import torch
from datasets import Dataset

from moodpo.conditioning.instruction import Conditioner
from moodpo.core.scalarization import linear
from moodpo.core.simplex import simplex_lattice
from moodpo.generation.base import SamplingConfig
from moodpo.training.config import MOODPOConfig
from moodpo.training.trainer import MOODPOTrainer
from tiny_policies import tiny_model, tiny_tokenizer

TRAINING_WORDS = ("ab", "cde", "f", "ghij", "kl", "m", "nop", "q", "rs", "tuvw", "xyz", "done")
HELD_OUT_WORDS = ("red", "blue", "sky", "sea")


def train(folder, rewards, *, steps, max_new_tokens, **settings):
    names = tuple(reward.__name__ for reward in rewards)
    trainer = MOODPOTrainer(
        tiny_model(hidden_size=64),
        reward_funcs=list(rewards),
        args=MOODPOConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=64,
            max_new_tokens=max_new_tokens,
            lr_scheduler_type="constant",
            generation_batch_size=256,
            report_to="none",
            save_strategy="no",
            logging_steps=steps,
            log_completions=0,
            disable_tqdm=True,
            use_cpu=True,
            **{"learning_rate": 3e-3, "concentration": [0.5], **settings},
        ),
        train_dataset=Dataset.from_dict({"prompt": TRAINING_WORDS * 8}),
        processing_class=tiny_tokenizer(chat_template=None),
        conditioner=Conditioner(objectives=names, weight_format="unary", template="{weights}"),
    )
    trainer.train()
    return trainer


def mean_rewards(trainer, weights, *, samples):
    """Mean raw rewards `[W, K]` on held-out prompts under each weight vector."""
    collector = trainer.collector
    prompts = HELD_OUT_WORDS * samples
    rows = []
    for w in weights:
        sampled = collector.generator.generate(
            [collector.encode(prompt, w) for prompt in prompts],
            sampling=SamplingConfig(max_new_tokens=collector.sampling.max_new_tokens),
            num_completions=1,
            seeds=range(len(prompts)),
        )
        texts = [
            collector.tokenizer.decode(c[0].token_ids, skip_special_tokens=True) for c in sampled
        ]
        rows.append(collector.panel.score(prompts, texts).mean(dim=0))
    return torch.stack(rows)


def rank_correlation(x, y):
    ranks = [v.argsort().argsort().float() for v in (x, y)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


# Square roots make the trade-off concave: the best mix of the two moves smoothly with the weights,
# where plain fractions would make every weight above one half ask for the same extreme.
def even(completions, **_):
    return [(sum(ord(c) % 2 == 0 for c in t) / max(len(t), 1)) ** 0.5 for t in completions]


def odd(completions, **_):
    return [(sum(ord(c) % 2 == 1 for c in t) / max(len(t), 1)) ** 0.5 for t in completions]


@pytest.mark.slow
def test_a_policy_learns_to_follow_weights_between_conflicting_rewards(tmp_path):
    trainer = train(tmp_path, (even, odd), steps=120, max_new_tokens=8)
    weights = simplex_lattice(2, 10)  # 11 weights; training saw others
    rewards = mean_rewards(trainer, weights, samples=8)
    assert rank_correlation(weights[:, 0], rewards[:, 0]) > 0.8
    assert rank_correlation(weights[:, 1], rewards[:, 1]) > 0.8
    assert rewards[-1, 0] - rewards[0, 0] > 0.5  # not only the order: the range


# Three kinds of answer on a known convex front; an answer's kind is its character modulo 3.
ARMS = torch.tensor([[1.0, 0.0], [0.75, 0.75], [0.0, 1.0]])


def _arm_reward(completions, k):
    return [ARMS[ord(text[0]) % 3, k].item() if text else 0.0 for text in completions]


def west(completions, **_):
    return _arm_reward(completions, 0)


def north(completions, **_):
    return _arm_reward(completions, 1)


def test_a_policy_finds_the_known_optimum_of_every_weight(tmp_path):
    # Slow and even enough to reach it from any seed: faster runs may settle at one arm.
    trainer = train(
        tmp_path,
        (west, north),
        steps=160,
        max_new_tokens=1,
        learning_rate=2e-3,
    )
    weights = torch.tensor([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    obtained = linear(mean_rewards(trainer, weights, samples=16), weights)
    optimum = linear(ARMS[None], weights[:, None]).amax(dim=1)
    assert optimum.tolist() == [1.0, 0.75, 1.0]
    untrained = ARMS.mean(dim=0) @ weights.T
    assert (obtained > untrained + 0.5 * (optimum - untrained)).all()
    assert (obtained / optimum).mean() > 0.85
