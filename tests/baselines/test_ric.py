from itertools import pairwise

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from transformers import TrainerCallback

from baselines.tiny_baselines import (
    NAMES,
    ask,
    config,
    load_base,
    options,
    random_members,
)
from moodpo.baselines import RewardsInContextPolicy, load_baseline, train_rewards_in_context
from moodpo.baselines.ric import (
    ScoredSamples,
    desired_scores,
    encode_with_scores,
    score_instruction,
)
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, RewardError
from moodpo.records import Completion, RolloutBatch
from moodpo.rewards.normalize import Normalizer
from tiny_policies import tiny_tokenizer

LOW, HIGH = (-2.0, -1.0), (3.0, 1.0)


class Losses(TrainerCallback):
    """Keeps every logged loss."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **_):
        self.values += [logs["loss"]] if "loss" in logs else []


def test_the_mapping_by_hand():
    # l2: z = w / |w|. 3-4-5: (0.6, 0.8) / 1 from weights (3/7, 4/7).
    assert desired_scores((3 / 7, 4 / 7), LOW, HIGH) == pytest.approx([1.0, 0.6])
    assert desired_scores((1.0, 0.0), LOW, HIGH) == [3.0, -1.0]
    half = desired_scores((0.5, 0.5), (0.0, 0.0), (1.0, 1.0))
    assert half == pytest.approx([0.70711, 0.70711], abs=1e-5)
    # linf: the largest weight asks for all, another for K times its own.
    assert desired_scores((0.8, 0.2), LOW, HIGH, mapping="linf") == pytest.approx([3.0, -0.2])
    assert desired_scores((0.5, 0.5), LOW, HIGH, mapping="linf") == [3.0, 1.0]
    three = desired_scores((0.5, 0.4, 0.1), (0.0,) * 3, (1.0,) * 3, mapping="linf")
    assert three == pytest.approx([1.0, 1.0, 0.3])


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.sampled_from(["l2", "linf"]))
def test_more_weight_never_asks_for_less_and_all_stays_in_range(raw, mapping):
    weights = [w / sum(raw) for w in raw]
    K = len(weights)
    scores = desired_scores(weights, [-1.0] * K, [2.0] * K, mapping=mapping)
    assert all(-1.0 - 1e-9 <= s <= 2.0 + 1e-9 for s in scores)
    ranked = sorted(zip(weights, scores, strict=True))
    assert all(a[1] <= b[1] + 1e-9 for a, b in pairwise(ranked))
    if mapping == "l2":  # on the unit sphere of the ranges
        assert sum(((s + 1) / 3) ** 2 for s in scores) == pytest.approx(1.0)


def test_scores_are_written_with_one_decimal_before_the_prompts_own_system_turn():
    assert score_instruction((1.25, -0.04), NAMES) == "Scores to reach: vowels 1.2, capitals 0.0."
    tokenizer = tiny_tokenizer()
    conditioner = Conditioner(objectives=NAMES, prompt_template="Q: {prompt}")
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.decode(encode_with_scores(conditioner, tokenizer, prompt, (1.0, -2.0)))
    assert text == (
        "<|im_start|>system\nScores to reach: vowels 1.0, capitals -2.0.\n\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nQ: Hi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_weights_become_scores_in_the_prompt(tmp_path):
    policy = random_members(
        tmp_path, RewardsInContextPolicy, count=1, low=LOW, high=HIGH, mapping="l2"
    )
    seen = []
    generate = policy.generator.generate
    policy.generator.generate = lambda ids, **k: seen.extend(ids) or generate(ids, **k)
    ask(policy, (1.0, 0.0), (0.0, 1.0))
    first, second = (policy.tokenizer.decode(ids) for ids in seen)
    assert "vowels 3.0, capitals -1.0." in first
    assert "vowels -2.0, capitals 1.0." in second


def test_samples_without_a_score_are_left_out():
    nan = float("nan")
    rollout = RolloutBatch(
        prompts=["p", "q"],
        labels=torch.full((2, 1, 2), 0.5),
        prompt_ids=[((1,),), ((2,),)],
        completions=[
            ((Completion((3,), True), Completion((4,), True)),),
            ((Completion((5,), True), Completion((6,), True)),),
        ],
        texts=[(("a", "b"),), (("c", "d"),)],
        rewards=torch.tensor([[[[1.0, 2.0], [nan, 0.0]]], [[[3.0, 4.0], [5.0, 6.0]]]]),
    )
    samples = ScoredSamples.of([rollout])
    assert samples.prompts == ["p", "q", "q"]
    assert samples.completion_ids == [(3,), (5,), (6,)]
    assert samples.rewards.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    with pytest.raises(RewardError, match="nothing to learn"):
        ScoredSamples.of([])


def test_fine_tuning_learns_the_samples_under_their_scores_and_survives_its_files(tmp_path):
    args = config(
        tmp_path / "run",
        max_steps=12,
        optim="adamw_torch",
        learning_rate=2e-2,
        per_device_train_batch_size=8,
    )
    losses = Losses()
    policy = train_rewards_in_context(
        load_base(tmp_path / "base"),
        num_completions=16,
        tail=0.0,
        **options(tmp_path, args=args, callbacks=[losses]),
    )
    assert losses.values[-1] < losses.values[0] - 0.3
    assert policy.record.training["completions"] == 16
    details = policy.record.details
    normalizer = Normalizer.from_state_dict(details["normalizer"])
    assert normalizer.statistics.count.tolist() == [16.0, 16.0]
    assert all(low < 0 < high for low, high in zip(details["low"], details["high"], strict=True))
    policy.save(tmp_path / "saved")
    loaded = load_baseline(tmp_path / "saved")
    assert type(loaded) is RewardsInContextPolicy
    assert loaded.conditioner.at((0.3, 0.7)) == policy.conditioner.at((0.3, 0.7))
    assert ask(loaded, (0.3, 0.7), (1.0, 0.0)) == ask(policy, (0.3, 0.7), (1.0, 0.0))


def test_the_loss_is_the_mean_over_completion_tokens(tmp_path, monkeypatch):
    """One step at learning rate 0 against the textbook."""
    from moodpo.baselines import ric

    captured = {}
    collator = ric._Collator.__call__

    def capture(self, rows):
        captured["rows"] = rows
        return collator(self, rows)

    monkeypatch.setattr(ric._Collator, "__call__", capture)
    args = config(tmp_path, max_steps=1, learning_rate=0.0, per_device_train_batch_size=8)
    base = load_base(tmp_path / "base")
    losses = Losses()
    policy = train_rewards_in_context(
        base, num_completions=8, **options(tmp_path, args=args, callbacks=[losses])
    )
    model, total, count = load_base(tmp_path / "base"), 0.0, 0
    for prompt, completion in captured["rows"]:
        assert "Scores to reach: vowels" in policy.tokenizer.decode(prompt)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
        at = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        total -= logits.log_softmax(-1)[at, torch.tensor(completion)].sum().item()
        count += len(completion)
    assert len(captured["rows"]) == 8
    assert losses.values[0] == pytest.approx(total / count, abs=2e-3)


def test_sampling_can_be_ended_early(tmp_path, monkeypatch):
    monkeypatch.setattr("moodpo.baselines.members.ROLLOUT_PROMPTS", 3)
    policy = train_rewards_in_context(
        load_base(tmp_path / "base"),
        num_completions=100,
        keep_sampling=lambda: False,
        **options(tmp_path, args=config(tmp_path, max_steps=1)),
    )
    assert policy.record.training["completions"] == 6


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="l2, linf"):
        train_rewards_in_context("x", num_completions=8, mapping="l3", **options(tmp_path))
    with pytest.raises(ConfigError, match="at least 2"):
        train_rewards_in_context("x", num_completions=1, **options(tmp_path))
