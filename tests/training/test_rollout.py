import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.conditioning import Conditioner
from moodpo.generation.base import Completion, SamplingConfig
from moodpo.records import PromptBatch, RolloutBatch
from moodpo.rewards import RewardPanel, load_rewards
from moodpo.rewards.normalize import Normalizer
from moodpo.training.rollout import (
    RolloutCollector,
    build_pairs,
    derive_seed,
    draw_weights,
)

NAN = float("nan")
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

    def generate(self, prompt_ids, *, sampling, num_completions, seeds):
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
        concentration=[1.0],
    )


def make_batch(indices):
    return PromptBatch(
        prompts=[f"prompt {i}" for i in indices],
        indices=list(indices),
        columns={"topic": [f"topic {i}" for i in indices]},
    )


def make_rollout(rewards, weights, completion_ids=None):
    size = len(weights)
    return RolloutBatch(
        prompts=[f"p{i}" for i in range(size)],
        weights=torch.tensor(weights),
        prompt_ids=[(i,) for i in range(size)],
        completion_ids=completion_ids or [((10 + i,), (20 + i,)) for i in range(size)],
        completions=[("a", "b")] * size,
        finished=torch.ones(size, 2, dtype=torch.bool),
        rewards=torch.tensor(rewards),
    )


def build(rollout, relabel="none", scalarization="linear"):
    return build_pairs(
        rollout,
        normalizer=Normalizer("none", 2),
        scalarization=scalarization,
        relabel=relabel,
        encode=lambda prompt, weights: (
            int(prompt[1:]),
            *(round(w * 100) for w in weights.tolist()),
        ),
    )


def test_seeds_differ_in_every_part_of_the_key_and_stay_in_range():
    keys = [(0, "train", 1, 2), (1, "train", 1, 2), (0, "eval", 1, 2), (0, "train", 12), (0, "y")]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "train", 1, 2) == seeds[0] == 6226108428555381139


def test_weights_of_a_prompt_do_not_depend_on_its_neighbors():
    together = draw_weights([0.5], 3, [1, 2, 3])
    assert torch.equal(together[1:2], draw_weights([0.5], 3, [2]))
    assert draw_weights([1.0, 50.0], 2, range(200))[:, 1].mean() > 0.9


def test_rewards_see_raw_prompts_and_columns_never_the_weight_instruction():
    seen = []
    rollout = make_collector(seen).collect(make_batch([0, 1]), key=(0, "train", 0))
    prompts, completions, columns = seen[0]
    assert prompts == ["prompt 0", "prompt 0", "prompt 1", "prompt 1"]
    assert columns["topic"] == ["topic 0", "topic 0", "topic 1", "topic 1"]
    # Interleaved: both completions of a prompt stand next to each other (trl#5514).
    assert completions == [c for pair in rollout.completions for c in pair]
    instruction = "".join(map(chr, rollout.prompt_ids[0]))
    assert instruction.startswith("Objective weights: first 0.")
    assert "prompt 0" in instruction


def test_rewards_stay_with_their_completions():
    rollout = make_collector().collect(make_batch([3, 5, 8]), key=(0, "train", 0))
    assert rollout.rewards.shape == (3, 2, 2)
    for row, pair in enumerate(rollout.completions):
        assert rollout.rewards[row, :, 0].tolist() == [float(len(text)) for text in pair]
        assert rollout.rewards[row, :, 1].tolist() == [0.0, 1.0]
    assert rollout.finished.tolist() == [[False, True]] * 3


@given(st.permutations(range(6)), st.integers(1, 5))
def test_a_rollout_is_the_same_however_the_batch_is_cut(order, cut):
    collector = make_collector()
    whole = collector.collect(make_batch(range(6)), key=(7, "train", 3))
    for part in (order[:cut], order[cut:]):
        piece = collector.collect(make_batch(part), key=(7, "train", 3))
        assert torch.equal(piece.weights, whole.weights[list(part)])
        assert list(piece.completion_ids) == [whole.completion_ids[i] for i in part]


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
    rollout = make_rollout([[[1.0, 0.0], [0.0, 1.0]]], [[0.9, 0.1]])
    pairs, statistics = build(rollout, relabel="antithetic")
    assert pairs.completion_ids == [((10,), (20,)), ((20,), (10,))]
    assert pairs.prompt_ids == [(0,), (0, 10, 90)]  # its own prompt, under the opposite weights
    assert pairs.relabeled.tolist() == [False, True]
    torch.testing.assert_close(pairs.weights, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    assert (statistics.labeled, statistics.relabeled, statistics.flipped) == (2, 1, 1)


def test_objectives_that_agree_do_not_flip():
    rollout = make_rollout([[[1.0, 1.0], [0.0, 0.0]]], [[0.9, 0.1]])
    pairs, statistics = build(rollout, relabel="antithetic")
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
    rollout = make_rollout([[[0.0, 0.0], [0.0, 0.0]]] * 2, [[0.5, 0.5]] * 2)
    pairs, statistics = build(rollout, relabel=relabel)
    assert len(pairs) == 0
    assert pairs.utilities.shape == (0, 2)
    assert pairs.rewards.shape == (0, 2, 2)
    assert statistics.active == 0
