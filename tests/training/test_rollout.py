from dataclasses import asdict, fields, replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.conditioning.instruction import Conditioner
from moodpo.generation.base import Completion, SamplingConfig
from moodpo.records import PromptBatch
from moodpo.rewards import RewardPanel, load_rewards
from moodpo.rewards.normalize import Normalizer
from moodpo.training.draws import dirichlet_draw
from moodpo.training.pairs import build_pairs
from moodpo.training.rollout import (
    RolloutCollector,
)

NAMES = ("first", "second")


class LetterTokenizer:
    """One token per character, and no chat template."""

    chat_template = None
    bos_token_id = None
    added_tokens_decoder: dict = {}  # noqa: RUF012
    all_special_tokens: tuple = ()

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


class EchoGenerator:
    """Completion j of a prompt is its seed and j in letters: depends on nothing else."""

    def generate(self, prompt_ids, *, sampling, num_completions, seeds, who="policy"):
        return [
            tuple(
                Completion(token_ids=tuple(ord(c) for c in f"{seed}/{j}"), finished=bool(j))
                for j in range(num_completions)
            )
            for seed in seeds
        ]


def make_collector(seen=None):
    def first(prompts, completions, **columns):
        if seen is not None:
            seen.append((list(prompts), list(completions), columns))
        return [float(len(c)) for c in completions]

    def second(completions, **_):
        return [float(c.endswith("1")) for c in completions]

    return RolloutCollector(
        conditioner=Conditioner(objectives=NAMES, weight_format="decimal"),
        tokenizer=LetterTokenizer(),
        generator=EchoGenerator(),
        panel=RewardPanel(load_rewards([first, second])),
        sampling=SamplingConfig(max_new_tokens=8),
        draw=dirichlet_draw(1.0, 2),
    )


def make_batch(indices):
    return PromptBatch(
        prompts=[f"prompt {i}" for i in indices],
        indices=list(indices),
        columns={"topic": [f"topic {i}" for i in indices]},
    )


def test_rewards_see_raw_prompts_and_columns_never_the_weight_instruction():
    seen = []
    rollout = make_collector(seen).collect(make_batch([0, 1]), key=(0, "train", 0))
    prompts, completions, columns = seen[0]
    assert prompts == ["prompt 0", "prompt 0", "prompt 1", "prompt 1"]
    assert columns["topic"] == ["topic 0", "topic 0", "topic 1", "topic 1"]
    # Interleaved: both completions of a prompt stand next to each other (trl#5514).
    assert completions == [text for (pair,) in rollout.texts for text in pair]
    instruction = "".join(map(chr, rollout.prompt_ids[0][0]))
    assert instruction.startswith("Objective weights: first 0.")
    assert "prompt 0" in instruction


def test_rewards_stay_with_their_completions():
    rollout = make_collector().collect(make_batch([3, 5, 8]), key=(0, "train", 0))
    assert rollout.rewards.shape == (3, 1, 2, 2)
    for row, (pair,) in enumerate(rollout.texts):
        assert rollout.rewards[row, 0, :, 0].tolist() == [float(len(text)) for text in pair]
        assert rollout.rewards[row, 0, :, 1].tolist() == [0.0, 1.0]
    assert [[c.finished for c in row] for row in rollout.candidates] == [[False, True]] * 3


@given(st.permutations(range(6)), st.integers(1, 5))
def test_a_rollout_is_the_same_however_the_batch_is_cut(order, cut):
    collector = make_collector()
    whole = collector.collect(make_batch(range(6)), key=(7, "train", 3))
    for part in (order[:cut], order[cut:]):
        piece = collector.collect(make_batch(part), key=(7, "train", 3))
        assert torch.equal(piece.labels, whole.labels[list(part)])
        assert list(piece.completions) == [whole.completions[i] for i in part]


def test_a_prompt_has_a_sequence_of_weights_and_their_opposites():
    base = make_collector().collect(make_batch([4]), key=(0, "train", 0))
    collector = replace(
        make_collector(), num_completions=1, weights_per_prompt=3, relabel="antithetic"
    )
    rollout = collector.collect(make_batch([4]), key=(0, "train", 0))
    assert rollout.labels.shape == (1, 4, 2)
    first, opposite, second, last = rollout.labels[0]
    assert torch.equal(first, base.labels[0, 0])
    torch.testing.assert_close(opposite, 1 - first)
    torch.testing.assert_close(last, 1 - second)
    assert not torch.allclose(second, first)
    assert torch.equal(rollout.weights, rollout.labels[:, :3])
    assert rollout.rewards.shape == (1, 3, 1, 2)
    # Completions of a prompt's weights have seeds of their own.
    assert len(set(rollout.candidates[0])) == 3
    assert rollout.completions[0][0][0] == base.completions[0][0][0]


def test_the_reference_is_asked_for_by_name():
    asked = []

    class Backend(EchoGenerator):
        def generate(self, *args, who="policy", **options):
            asked.append(who)
            return super().generate(*args, **options)

    collector = replace(make_collector(), generator=Backend())
    collector.collect(make_batch([0]), key=(0,))
    collector.collect(make_batch([0]), key=(0,), who="reference")
    assert asked == ["policy", "reference"]


def test_columns_follow_every_completion_of_their_prompt():
    seen = []
    collector = replace(make_collector(seen), num_completions=2, weights_per_prompt=2)
    rollout = collector.collect(make_batch([0, 1]), key=(0, "train", 0))
    prompts, _, columns = seen[0]
    assert prompts == ["prompt 0"] * 4 + ["prompt 1"] * 4
    assert columns["topic"] == ["topic 0"] * 4 + ["topic 1"] * 4
    # As TRL passes them: lists of the policy's own tokens.
    ids = [list(c.token_ids) for row in rollout.candidates for c in row]
    assert columns["completion_ids"] == ids


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"relabel": "antithetic"},
        {"relabel": "antithetic", "weights_per_prompt": 2},
        {"relabel": "antithetic", "num_completions": 3},
    ],
)
def test_a_process_without_prompts_asks_nobody_and_has_everything_else(settings):
    settings = dict(settings)
    seen: list = []
    collector = make_collector(seen)
    collector = replace(collector, generator=None, **settings)
    nothing = collector.collect(make_batch([]), key=(0,))
    assert not seen
    assert len(nothing) == 0
    some = replace(collector, generator=EchoGenerator()).collect(make_batch([0, 1]), key=(0,))
    for name in ("labels", "rewards"):
        expected, found = getattr(some, name), getattr(nothing, name)
        assert (expected is None) == (found is None), name
        if expected is not None:
            assert (found.shape, found.dtype) == (expected[:0].shape, expected.dtype), name
    asked = {"normalizer": Normalizer("none", 2), "scalarization": "linear"}
    pairs, statistics = build_pairs(nothing, encode=collector.encode, **asked)
    others, _ = build_pairs(some, encode=collector.encode, **asked)
    assert not any(asdict(statistics).values())
    for field in fields(pairs):
        found, expected = getattr(pairs, field.name), getattr(others, field.name)
        if isinstance(expected, torch.Tensor):
            assert (found.shape, found.dtype) == (expected[:0].shape, expected.dtype), field.name
        else:
            assert not found
    assert len(pairs.select([])) == 0
