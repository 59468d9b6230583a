import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from baselines.tiny_baselines import NAMES, PROMPTS, ask, load_base, options, random_members
from moodpo.baselines import FixedWeightPolicy, load_baseline, train_fixed_weights
from moodpo.baselines.fixed import nearest_member
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, WeightsError
from moodpo.generation.tokens import read_answer

TRAINED = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))


def test_the_nearest_by_hand():
    assert nearest_member((0.8, 0.2), TRAINED) == 0
    assert nearest_member((0.7, 0.3), TRAINED) == 1
    assert nearest_member((0.1, 0.9), TRAINED) == 2
    assert nearest_member((0.75, 0.25), TRAINED) == 0  # as near to the next: the first
    assert nearest_member(torch.tensor([0.25, 0.75]).tolist(), TRAINED) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_nobody_is_nearer_than_the_nearest(places, asked):
    trained = [(p, 1 - p) for p in places]
    found = nearest_member((asked, 1 - asked), trained)
    assert abs(places[found] - asked) <= min(abs(p - asked) for p in places) + 1e-3


@pytest.mark.parametrize("instructed", [False, True])
def test_the_nearest_member_answers_under_its_own_instruction(tmp_path, instructed):
    policy = random_members(
        tmp_path, FixedWeightPolicy, count=3, weights=TRAINED, instructed=instructed
    )
    asked = [(0.9, 0.1), (0.6, 0.4), (0.5, 0.5), (0.2, 0.8)]
    answers = ask(policy, *asked)
    for i, (weights, member) in enumerate(zip(asked, (0, 1, 1, 2), strict=True)):
        own = TRAINED[member] if instructed else None
        ids = Conditioner(objectives=NAMES).encode(policy.tokenizer, PROMPTS[i], own)
        policy.model.set_adapter(f"member-{member}")
        ((completion,),) = policy.generator.generate(
            [ids], sampling=policy.sampling, num_completions=1, seeds=[0]
        )
        assert answers[i] == read_answer(policy.tokenizer, completion), weights
    assert len(set(ask(policy, *[(1.0, 0.0)], *[(0.0, 1.0)]))) == 2


def test_trained_policies_survive_their_files(tmp_path):
    policy = train_fixed_weights(
        load_base(tmp_path / "base"), [[0.9, 0.1], [0.1, 0.9]], **options(tmp_path / "run")
    )
    assert policy.trained_weights == ((0.9, 0.1), (0.1, 0.9))
    assert policy.record.training["completions"] == 12 + 2 * (4 + 2) * 2
    policy.save(tmp_path / "saved")
    loaded = load_baseline(tmp_path / "saved")
    assert type(loaded) is FixedWeightPolicy
    rows = [(0.8, 0.2), (0.2, 0.8), (0.5, 0.5)]
    assert ask(loaded, *rows) == ask(policy, *rows)
    assert loaded.describe()["sha256"] == policy.describe()["sha256"] is not None


def test_weights_that_do_not_fit_are_refused(tmp_path):
    base = load_base(tmp_path / "base")
    with pytest.raises(ConfigError, match="no weights"):
        train_fixed_weights(base, torch.empty(0, 2), **options(tmp_path))
    with pytest.raises(WeightsError, match="at least 0"):
        train_fixed_weights(base, [[1.5, -0.5]], **options(tmp_path))
