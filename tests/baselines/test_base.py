import math

import pytest
import torch

from baselines.tiny_baselines import (
    GREEDY,
    NAMES,
    PROMPTS,
    SAMPLED,
    ask,
    capitals,
    load_base,
    random_members,
    vowels,
)
from moodpo.baselines import (
    FixedWeightPolicy,
    PromptedPolicy,
    RewardedSoup,
    RewardsInContextPolicy,
    load_baseline,
)
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, ManifestError
from moodpo.evaluation.comparison import compare
from moodpo.evaluation.sweep import evaluate_policy
from moodpo.records import Answer
from moodpo.rewards import RewardPanel, load_rewards
from tiny_policies import tiny_tokenizer

WEIGHTS = [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]


def make(kind, folder):
    if kind is PromptedPolicy:
        conditioner = Conditioner(objectives=NAMES)
        return kind.from_model(
            load_base(folder / "base"), tiny_tokenizer(), conditioner, sampling=GREEDY
        )
    details = {
        RewardedSoup: {},
        FixedWeightPolicy: {"weights": WEIGHTS[::2], "instructed": True},
        RewardsInContextPolicy: {"low": [-1.0, -1.0], "high": [2.0, 2.0], "mapping": "l2"},
    }[kind]
    count = 1 if kind is RewardsInContextPolicy else 2
    return random_members(folder, kind, count=count, **details)


KINDS = [PromptedPolicy, RewardedSoup, FixedWeightPolicy, RewardsInContextPolicy]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    return {kind: make(kind, folder) for kind in KINDS}


def evaluate(policy, **options):
    return evaluate_policy(
        policy,
        PROMPTS[:4],
        RewardPanel(load_rewards([vowels, capitals])),
        weights=WEIGHTS,
        sampling=SAMPLED,
        num_resamples=20,
        chunk_size=5,
        **options,
    )


def test_every_baseline_can_be_swept_resumed_and_compared(policies, tmp_path):
    results = []
    for kind, policy in policies.items():
        journal = tmp_path / f"{policy.kind}.jsonl"
        result = evaluate(policy, baseline_policy=policy.base_policy(), resume_path=journal)
        assert result.objectives == NAMES
        assert result.policy["kind"] == policy.kind
        assert math.isfinite(result.metrics["hypervolume"]["value"])
        assert result.baseline.name == "base model"
        assert (result.lengths >= 1).all()
        assert (result.baseline.lengths >= 1).all()
        assert ((result.lengths == SAMPLED.max_new_tokens) | result.finished).all()
        trained_differs = result.completions != result.baseline.completions
        assert trained_differs == (kind is not PromptedPolicy)
        result.save(tmp_path / policy.kind / "results.json")
        results.append((policy.title, result))
    assert len(compare(results, num_resamples=20).differences) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_policy_reads_the_same_text_without_the_adapters(policies, kind, tmp_path):
    policy = policies[kind]
    asked = {"trained": [], "base": []}
    generate = policy.generator.generate
    for name, who in (("trained", policy), ("base", policy.base_policy())):
        policy.generator.generate = lambda ids, _n=name, **k: (
            asked[_n].extend(ids) or generate(ids, **k)
        )
        answers = ask(who, (0.0, 1.0), (1.0, 0.0))
    policy.generator.generate = generate
    assert sorted(asked["trained"]) == sorted(asked["base"])
    plain = load_base(tmp_path / "base")
    generator = type(policy.generator)(
        plain, eos_token_ids=policy.generator.eos_token_ids, pad_token_id=0
    )
    expected = generator.generate(asked["base"], sampling=GREEDY, num_completions=1, seeds=range(2))
    decode = policy.tokenizer.decode
    assert answers == [
        Answer(decode(c.token_ids, skip_special_tokens=True), c.token_ids, c.finished)
        for (c,) in expected
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_baseline_is_asked_like_the_method_and_knows_how_far_it_went(policies, kind):
    policy = policies[kind]
    asked = policy.generate(PROMPTS[:2], {"vowels": 1.0}, max_new_tokens=5, temperature=0)
    weights = torch.tensor([[1.0, 0.0]] * 2)
    sampling = policy.sampling_with(max_new_tokens=5, temperature=0)
    answers = policy.sample(PROMPTS[:2], weights, seeds=[0, 1], sampling=sampling)
    assert asked == [answer.text for answer in answers]
    moved = policy.kl_to_reference(PROMPTS[:2], weights, answers)
    assert (moved == [0.0, 0.0]) == (kind is PromptedPolicy)
    mixed = torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # rows of two groups
    assert policy.kl_to_reference(PROMPTS[:2], mixed, answers)[1] == pytest.approx(moved[1])
    assert policy.base_policy().kl_to_reference(PROMPTS[:2], weights, answers) == [0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_policies_say_what_they_are(policies, kind):
    policy = policies[kind]
    said = policy.describe()
    assert {"name", "path", "kind", "lineage", "sha256"} <= said.keys()
    assert policy.count_tokens(["abc", "", "<|im_end|>"]) == [3, 0, 10]
    assert policy.count_tokens([]) == []
    assert policy.sampling_with(max_new_tokens=3, temperature=None).max_new_tokens == 3
    assert policy.sampling == GREEDY


def test_a_baseline_whose_base_is_gone_or_moved(tmp_path):
    policy = make(RewardedSoup, tmp_path)
    policy.save(tmp_path / "saved")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="base_model="):
        load_baseline(tmp_path / "saved")
    loaded = load_baseline(tmp_path / "saved", base_model=str(tmp_path / "elsewhere"))
    assert ask(loaded, (0.5, 0.5)) == ask(policy, (0.5, 0.5))


def test_half_precision_is_asked_for_by_name(tmp_path):
    policy = make(RewardedSoup, tmp_path)
    policy.save(tmp_path / "saved")
    loaded = load_baseline(tmp_path / "saved", dtype="bfloat16", device="cpu")
    assert loaded.model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert len(ask(loaded, (0.5, 0.5), (1.0, 0.0))) == 2
    with pytest.raises(ConfigError, match="dtype"):
        load_baseline(tmp_path / "saved", dtype="int7")


def test_a_record_of_another_kind_or_without_its_adapters_is_refused(tmp_path):
    policy = make(RewardedSoup, tmp_path)
    with pytest.raises(ConfigError, match="load_baseline"):
        FixedWeightPolicy(policy.model, policy.tokenizer, policy.record)
    with pytest.raises(ConfigError, match="does not carry"):
        RewardedSoup(load_base(tmp_path / "base"), policy.tokenizer, policy.record)
