from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from baselines.tiny_baselines import (
    NAMES,
    PROMPTS,
    capitals,
    config,
    load_base,
    lora,
    options,
    vowels,
)
from moodpo.baselines.members import (
    Counted,
    Setup,
    add_adapter,
    base_rollouts,
    constant_draw,
    cyclic_draw,
    silenced,
    train_members,
)
from moodpo.conditioning.instruction import Conditioner
from moodpo.core.seeds import derive_seed
from moodpo.errors import ConfigError, DataError
from moodpo.rewards.normalize import Normalizer
from moodpo.training.trainer import MOODPOTrainer
from tiny_policies import tiny_model, tiny_tokenizer


def adapter_weights(model, name):
    return {
        key: value.detach().clone() for key, value in model.named_parameters() if f".{name}." in key
    }


def test_constant_weights_are_drawn_for_every_seed_and_counted():
    draw = Counted(constant_draw([0.25, 0.75]))
    assert draw([7, 8, 9]).tolist() == [[0.25, 0.75]] * 3
    assert draw([1]).tolist() == [[0.25, 0.75]]
    assert draw.prompts == 4


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=6), st.data())
@settings(max_examples=25, deadline=None)
def test_a_cyclic_draw_depends_on_its_own_seed_alone(seeds, data):
    weights = torch.eye(3)
    draw = cyclic_draw(weights)
    place = data.draw(st.integers(0, len(seeds) - 1))
    assert torch.equal(draw(seeds)[place], draw([seeds[place]])[0])


def test_a_cyclic_draw_visits_all_alike():
    drawn = cyclic_draw(torch.eye(3))([derive_seed(0, i) for i in range(600)])
    assert (drawn.sum(dim=0) > 150).all()


def test_a_silent_conditioner_frames_the_prompt_and_says_no_weights():
    loud = Conditioner(objectives=NAMES, prompt_template="Answer this: {prompt}")
    silent = silenced(loud)
    assert silent.objectives == NAMES
    assert silent.messages("x", (0.5, 0.5)) == [{"role": "user", "content": "Answer this: x"}]
    tokenizer = tiny_tokenizer()
    plain = loud.encode(tokenizer, "x", None)
    assert silent.encode(tokenizer, "x", (0.5, 0.5)) == plain
    assert silent.encode(tokenizer, "x", (1.0, 0.0)) == plain


def test_members_read_what_the_method_would(tmp_path):
    args = config(tmp_path / "run")
    setup = Setup.of(
        load_base(tmp_path / "base"),
        **options(tmp_path, args=args, reward_funcs=["plainness", "richness"]),
    )
    names = ("plainness", "richness")
    assert setup.conditioner == args.make_conditioner(names)
    assert "Write simply" in setup.conditioner.instruction((0.7, 0.3))


def test_the_trainer_draws_what_its_weight_sampler_says(tmp_path):
    draw = Counted(constant_draw([0.9, 0.1]))
    trainer = MOODPOTrainer(
        tiny_model(),
        reward_funcs=[vowels, capitals],
        args=config(tmp_path, reward_normalization="none", relabel="none", save_strategy="no"),
        train_dataset=[{"prompt": p} for p in PROMPTS],
        processing_class=tiny_tokenizer(),
        weight_sampler=draw,
    )
    rollouts, collect = [], trainer.collector.collect
    trainer.collector.collect = lambda *a, **k: rollouts.append(collect(*a, **k)) or rollouts[-1]
    trainer.train()
    drawn = torch.cat([rollout.weights[:, 0] for rollout in rollouts])
    assert draw.prompts == len(drawn) == 2 + 4  # six prompts in batches of four, one epoch
    torch.testing.assert_close(drawn, torch.tensor([[0.9, 0.1]] * len(drawn)))
    instructed = trainer.collector.encode(rollouts[0].prompts[0], torch.tensor([0.9, 0.1]))
    assert rollouts[0].prompt_ids[0] == (instructed,)


def test_adapters_start_alike_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    model = add_adapter(tiny_model(), lora(), "one", seed=5)
    model = add_adapter(model, lora(), "two", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    one, two = adapter_weights(model, "one"), adapter_weights(model, "two")
    for key, value in one.items():
        assert torch.equal(value, two[key.replace(".one.", ".two.")])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(two)


def test_base_rollouts_are_of_the_base_model_and_repeat_the_prompts(tmp_path):
    setup = Setup.of(load_base(tmp_path / "base"), **options(tmp_path))

    def said(setup):
        collector = setup.collector(silenced(setup.conditioner), constant_draw([0.5, 0.5]))
        rollouts = list(base_rollouts(setup, collector, prompts=8, key=(0, "x")))
        assert all(len(set(r.prompt_ids)) == len(set(r.prompts)) for r in rollouts)
        return [(p, c) for r in rollouts for p, c in zip(r.prompts, r.completions, strict=True)]

    before = said(setup)
    assert len(before) == 8
    assert {prompt for prompt, _ in before} == set(PROMPTS)  # all six once, then two again
    model = add_adapter(setup.model, lora(init_lora_weights=False), "odd", seed=1)
    assert said(replace(setup, model=model)) == before  # the adapter is off


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_format": "verbal"},
        {"weight_format": "decimal", "instruction_template": "Weigh so: {weights}"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_a_baseline_reads_the_instruction_of_the_method(tmp_path, settings):
    chosen = options(tmp_path, args=config(tmp_path, reward_normalization="none", **settings))
    chosen["reward_funcs"] = ["plainness", "richness", capitals]  # two with words of ours
    baseline = Setup.of(load_base(tmp_path / "base"), **chosen).conditioner
    del chosen["peft_config"]
    method = MOODPOTrainer(load_base(tmp_path / "base"), **chosen).collector.conditioner
    assert baseline == method
    weights = (0.5, 0.3, 0.2)
    assert baseline.messages("Hi", weights) == method.messages("Hi", weights)
    if not settings:
        assert "Write simply, as for a small child" in baseline.instruction(weights)


@pytest.mark.parametrize("instructed", [False, True])
def test_members_are_trained_apart_from_one_another(tmp_path, instructed):
    """Each member is what the trainer alone would have made of its weights."""
    weights = torch.tensor([[1.0, 0.0], [0.2, 0.8]])
    normalizer = Normalizer("calibrate", 2)
    normalizer.calibrate(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
    setup = Setup.of(load_base(tmp_path / "base"), **options(tmp_path, normalizer=normalizer))
    frozen = {n: p.detach().clone() for n, p in setup.model.named_parameters()}
    model, took = train_members(setup, weights, instructed=instructed)

    alone = add_adapter(load_base(tmp_path / "base"), lora(), "alone", seed=3)
    loud = Conditioner(objectives=NAMES)
    trainer = MOODPOTrainer(
        alone,
        reward_funcs=[vowels, capitals],
        args=config(tmp_path / "alone", relabel="none", save_strategy="no"),
        train_dataset=options(tmp_path)["train_dataset"],
        processing_class=tiny_tokenizer(),
        conditioner=loud if instructed else silenced(loud),
        weight_sampler=constant_draw([0.2, 0.8]),
    )
    trainer.normalizer = normalizer
    trainer.train()
    second = adapter_weights(model, "member-1")
    for key, value in adapter_weights(alone, "alone").items():
        torch.testing.assert_close(value, second[key.replace(".alone.", ".member-1.")])
    assert any(value.abs().sum() > 0 for key, value in second.items() if "lora_B" in key)
    first = adapter_weights(model, "member-0")
    assert any(
        not torch.allclose(value, second[key.replace(".member-0.", ".member-1.")])
        for key, value in first.items()
    )
    base = model.get_base_model().state_dict()
    for name, value in frozen.items():
        current = base.get(name, base.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(current, value), name
    assert took["completions"] == 2 * (4 + 2) * 2  # members x prompts x 2
    assert took["steps"] == 4


def test_members_share_one_scale_of_rewards_measured_under_all_their_weights(tmp_path, monkeypatch):
    seen = []
    train = MOODPOTrainer.train

    def spy(trainer):
        seen.append(trainer.normalizer)
        assert trainer.args.relabel == "none"
        return train(trainer)

    monkeypatch.setattr(MOODPOTrainer, "train", spy)
    setup = Setup.of(
        load_base(tmp_path / "base"), **options(tmp_path, args=config(tmp_path, max_steps=1))
    )
    _, took = train_members(setup, torch.eye(2), instructed=True)
    assert seen[0] is seen[1]
    assert seen[0].statistics.count.tolist() == [12.0, 12.0]  # six prompts twice
    assert took["completions"] == 12 + 2 * 4 * 2
    assert setup.args.relabel == "antithetic"  # the caller's own settings stay


def test_a_model_that_carries_an_adapter_is_refused(tmp_path):
    model = add_adapter(tiny_model(), lora(), "x", seed=0)
    with pytest.raises(ConfigError, match="carries an adapter"):
        Setup.of(model, **options(tmp_path))


def test_baselines_drop_and_refuse_the_same_prompts_as_the_method(tmp_path, monkeypatch):
    prompts = [*PROMPTS, "Say " + "very " * 40 + "much.", None]
    rows = [{"prompt": prompt} for prompt in prompts]
    args = config(tmp_path, max_prompt_length=150)
    setup = Setup.of(tiny_model(), **options(tmp_path, args=args, train_dataset=rows))
    trainer = MOODPOTrainer(
        tiny_model(),
        reward_funcs=[vowels, capitals],
        args=args,
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        conditioner=setup.conditioner,
    )
    assert list(setup.train_dataset["prompt"]) == PROMPTS
    assert list(trainer.train_dataset["prompt"]) == PROMPTS
    monkeypatch.setattr("moodpo.baselines.members.load_given", None)
    with pytest.raises(DataError, match="train_dataset has no column 'prompt'"):
        Setup.of("org/model", **options(tmp_path, train_dataset=[{"text": "a"}]))


@pytest.mark.parametrize(
    "changes", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}]
)
def test_members_are_held_to_a_base_that_they_leave_alone(tmp_path, changes):
    setup = Setup.of(tiny_model(), **options(tmp_path, peft_config=lora(**changes)))
    with pytest.raises(ConfigError, match="does not give the base model"):
        train_members(setup, torch.eye(2), instructed=False)


def test_an_adapter_of_members_that_does_not_fit_is_bad_input(tmp_path):
    setup = Setup.of(tiny_model(), **options(tmp_path, peft_config=lora(target_modules=["no"])))
    with pytest.raises(ConfigError, match="cannot be put on this model"):
        train_members(setup, torch.eye(2), instructed=False)
