import copy

import pytest
import torch

from baselines.tiny_baselines import (
    GREEDY,
    PROMPTS,
    SAMPLED,
    ask,
    load_base,
    lora,
    options,
    random_members,
)
from moodpo.baselines import RewardedSoup, load_baseline, train_soup
from moodpo.errors import ConfigError
from moodpo.generation.tokens import read_answer

IDS = torch.arange(40, 60)[None]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def logits_at(policy, weights):
    """Of the soup at these weights."""
    with policy.adapters.active(policy.adapters.group(weights)):
        return logits(policy.model)


def interpolated(folder, policy, weights):
    """θ_0 + Σ_k w_k (θ_k − θ_0), every weight matrix written out in full."""
    model = load_base(folder / "base")
    parameters = dict(model.named_parameters())
    for name, module in policy.model.get_base_model().named_modules():
        if not hasattr(module, "lora_A"):
            continue
        for k, adapter in enumerate(policy.record.adapters):
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            config = policy.model.peft_config[adapter]
            scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
            parameters[f"{name}.weight"].data += weights[k] * scale * (b @ a)
    return model


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8)])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_soup_is_the_interpolation_of_the_weights(tmp_path, weights, rslora):
    config = lora(use_rslora=True, lora_alpha=8) if rslora else lora()  # one scale, 4
    policy = random_members(tmp_path, RewardedSoup, peft_config=config)
    expected = logits(interpolated(tmp_path, policy, weights))
    torch.testing.assert_close(logits_at(policy, weights), expected, atol=1e-5, rtol=1e-5)
    base = logits(load_base(tmp_path / "base"))
    assert (expected - base).abs().max() > 0.1  # the adapters do something


def test_averaging_the_factors_would_be_another_model(tmp_path):
    policy = random_members(tmp_path, RewardedSoup)
    exact = logits_at(policy, (0.5, 0.5))
    policy.model.add_weighted_adapter(
        list(policy.record.adapters), [0.5, 0.5], "averaged", combination_type="linear"
    )
    policy.model.set_adapter("averaged")
    assert (logits(policy.model) - exact).abs().max() > 0.1


def test_a_soup_at_a_corner_is_that_objectives_own_policy(tmp_path):
    policy = random_members(tmp_path, RewardedSoup)
    for k, corner in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        soup = ask(policy, *[corner] * len(PROMPTS))
        policy.model.set_adapter(policy.record.adapters[k])
        ids = [policy.conditioner.encode(policy.tokenizer, p, None) for p in PROMPTS]
        alone = policy.generator.generate(
            ids, sampling=GREEDY, num_completions=1, seeds=range(len(ids))
        )
        assert soup == [read_answer(policy.tokenizer, completion) for (completion,) in alone]
        assert torch.equal(logits_at(policy, corner), logits(policy.model))
    assert ask(policy, (1.0, 0.0)) != ask(policy, (0.0, 1.0))


def test_rows_are_answered_as_if_each_weight_vector_were_alone(tmp_path):
    policy = random_members(tmp_path, RewardedSoup)
    rows = [(0.5, 0.5), (1.0, 0.0), (0.5, 0.5), (0.1, 0.9), (0.0, 1.0)]
    together = ask(policy, *rows, sampling=SAMPLED)
    for i, row in enumerate(rows):
        alone = policy.sample([PROMPTS[i]], torch.tensor([row]), seeds=[i], sampling=SAMPLED)
        assert alone == [together[i]]


def test_soups_are_made_once_and_forgotten_when_there_are_too_many(tmp_path, monkeypatch):
    policy = random_members(tmp_path, RewardedSoup)
    policy.adapters.cache_size = 2
    made = []
    add = policy.model.add_weighted_adapter
    monkeypatch.setattr(
        policy.model,
        "add_weighted_adapter",
        lambda *a, **k: made.append(a[1]) or add(*a, **k),
        raising=False,
    )
    mixes = [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]
    first = ask(policy, mixes[0])
    assert ask(policy, mixes[0]) == first
    assert ask(policy, (1.0, 0.0)) is not None
    assert made == [[0.25, 0.75]]  # once, and none for the corner
    ask(policy, mixes[1])
    ask(policy, mixes[2])
    kept = set(policy.model.peft_config)
    assert len(kept) == 2 + 2
    assert ask(policy, mixes[0]) == first  # made again
    assert len(made) == 4
    assert len(policy.model.peft_config) == 4


@pytest.mark.parametrize("odd", [{"use_dora": True}, {"bias": "all"}])
def test_adapters_that_do_not_add_up_are_refused(tmp_path, odd):
    with pytest.raises(ConfigError, match="not plain LoRA"):
        train_soup(load_base(tmp_path / "base"), **options(tmp_path, peft_config=lora(**odd)))


def test_a_soup_needs_one_policy_per_objective(tmp_path):
    with pytest.raises(ConfigError, match="one adapter per objective"):
        random_members(tmp_path, RewardedSoup, count=3)


def test_a_trained_soup_survives_its_files(tmp_path):
    policy = train_soup(load_base(tmp_path / "base"), **options(tmp_path / "run"))
    rows = [(0.3, 0.7), (1.0, 0.0), (0.0, 1.0)]
    before = logits_at(policy, rows[0])
    policy.save(tmp_path / "saved")
    loaded = load_baseline(tmp_path / "saved")
    assert type(loaded) is RewardedSoup
    assert loaded.record == copy.deepcopy(policy.record)
    torch.testing.assert_close(logits_at(loaded, rows[0]), before, atol=1e-5, rtol=1e-5)
    assert ask(loaded, *rows) == ask(policy, *rows)
    folders = {p.name for p in (tmp_path / "saved" / "adapters").iterdir() if p.is_dir()}
    assert folders == {"member-0", "member-1"}  # soups are mixed again, not kept
