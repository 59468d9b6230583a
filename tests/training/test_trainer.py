import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from moodpo.core.loss import dpo_loss
from moodpo.core.pairing import pair_completions
from moodpo.errors import ConfigError, DivergenceError, RewardError, RewardSpecError
from moodpo.manifest import RunManifest
from moodpo.training.trainer import MOODPOTrainer
from tiny_checkpoints import build_tiny_gpt2_reward
from tiny_policies import (
    CHATML,
    save_tiny_policy,
    tiny_model,
    tiny_tokenizer,
    tokenizer_with_padding_outside,
)
from tiny_trainers import (
    PROMPTS,
    assert_same,
    capitals,
    config,
    logged,
    make_trainer,
    parameters,
    vowels,
)


@pytest.mark.parametrize("lora", [False, True])
def test_accumulation_changes_nothing_but_memory(tmp_path, lora):
    results = []
    for size, accumulation in ((8, 1), (2, 4), (1, 8)):
        trainer = make_trainer(
            tmp_path / f"{size}",
            lora=lora,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        results.append((parameters(trainer), logged(trainer, "loss"), logged(trainer, "grad_norm")))
    for values, losses, norms in results[1:]:
        assert_same(values, results[0][0], atol=1e-5, rtol=1e-5)
        assert losses == pytest.approx(results[0][1], rel=1e-4)
        assert norms == pytest.approx(results[0][2], rel=1e-4)
    start = dict(tiny_model().named_parameters())
    if not lora:
        assert any(not torch.equal(start[n], v) for n, v in results[0][0].items())


@pytest.mark.parametrize(
    "settings",
    [
        {"num_generations": 4, "weights_per_prompt": 2, "relabel": "none"},
        {"num_generations": 3, "weights_per_prompt": 3, "relabel": "antithetic"},
        {"label_temperature": 0.5},
        {"rpo_alpha": 0.5},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_accumulation_changes_nothing_whatever_the_pairs(tmp_path, settings):
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path / f"{size}",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **settings,
        )
        trainer.train()
        results.append((parameters(trainer), logged(trainer, "loss")))
    assert_same(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-4)
    plain = make_trainer(
        tmp_path / "plain", per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    plain.train()
    assert logged(plain, "loss") != pytest.approx(results[0][1], rel=1e-4)


def test_without_its_terms_the_loss_is_that_of_the_published_method(tmp_path):
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    plain = make_trainer(tmp_path / "plain", **settings)
    plain.train()
    off = {
        "rpo_alpha": 0.0,
        "label_temperature": 0.0,
    }
    same = make_trainer(tmp_path / "same", **settings, **off)
    same.train()
    assert_same(parameters(same), parameters(plain), atol=0, rtol=0)


def test_likelihood_is_added_to_preference(tmp_path):
    whole = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 1}
    losses = {}
    for alpha in (0.0, 0.25, 0.5):
        trainer = make_trainer(tmp_path / f"{alpha}", **whole, rpo_alpha=alpha)
        trainer.train()
        (losses[alpha],) = logged(trainer, "loss")
    # Per token of a policy that knows nothing yet: the log of its vocabulary.
    imitation = (losses[0.5] - losses[0.0]) / 0.5
    assert imitation == pytest.approx(math.log(trainer.model.config.vocab_size), rel=0.2)
    assert losses[0.25] == pytest.approx(losses[0.0] + 0.25 * imitation, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 3, "weights_per_prompt": 2}, "multiple of weights_per_prompt"),
        ({"num_generations": 1}, "num_generations must be at least 2"),
    ],
)
def test_settings_of_pairs_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "shared"),
    [({"activation_checkpointing": True}, True), ({}, False)],
)
def test_micro_batches_share_a_pass_where_memory_allows(tmp_path, monkeypatch, settings, shared):
    import moodpo.training.learner as module

    alone = make_trainer(
        tmp_path / "alone",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        max_steps=1,
    )
    alone.train()
    counted, original = [], module.voted_loss
    monkeypatch.setattr(
        module, "voted_loss", lambda *a, **k: counted.append(1) or original(*a, **k)
    )
    together = make_trainer(
        tmp_path / "together",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        max_steps=1,
        **settings,
    )
    together.train()
    # Alone, a pass for every prompt; those whose completions are the same have no pair to train.
    assert len(counted) == 1 if shared else 6 <= len(counted) <= 8
    assert_same(parameters(together), parameters(alone), atol=1e-5, rtol=1e-5)
    assert logged(together, "loss") == pytest.approx(logged(alone, "loss"), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_that_of_the_plain_loop(tmp_path, temperature):
    """Generate, score and pair by the trainer; loss and gradient by the textbook."""
    trainer = make_trainer(
        tmp_path,
        max_steps=1,
        learning_rate=0.0,
        beta=0.3,
        max_grad_norm=0.0,
        temperature=temperature,
    )
    captured = {}
    label = trainer.learner.label

    def capture(rollout):
        captured["rollout"] = rollout
        captured["pairs"], statistics = label(rollout)
        return captured["pairs"], statistics

    gradients = {}
    trainer.learner.label = capture
    original = trainer.create_optimizer()
    step = original.step

    def keep_gradients(*args, **kwargs):
        gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
        return step(*args, **kwargs)

    original.step = keep_gradients
    trainer.train()
    pairs = captured["pairs"]
    assert len(pairs) > 4
    model, reference = tiny_model(), tiny_model()

    def logp(network, prompt, completion):
        logits = network(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
        at = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
        logps = (logits / temperature).log_softmax(-1)  # of the distribution that was sampled
        return logps[at, torch.tensor(completion)].sum()

    def table(network):
        return torch.stack(
            [
                torch.stack([logp(network, prompt, c) for c in pair])
                for prompt, pair in zip(pairs.prompt_ids, pairs.completion_ids, strict=True)
            ]
        )

    with torch.no_grad():
        ref_logps = table(reference)
    loss = dpo_loss(table(model), ref_logps, beta=0.3).mean()
    loss.backward()
    assert logged(trainer, "loss")[0] == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        difference = (gradients[name] - parameter.grad).norm()
        assert difference <= 1e-5 * parameter.grad.norm().clamp_min(1e-3), name


@pytest.mark.parametrize(
    "more",
    [
        {"reward_normalization": "calibrate"},
        {"reward_normalization": "running", "lr_scheduler_type": "linear"},
    ],
    ids=lambda more: "-".join(map(str, next(iter(more.items())))),
)
def test_resumed_equals_uninterrupted(tmp_path, more):
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 3,  # the log window straddles the interruption
        "lora": True,
        "optim": "adamw_torch",
        **more,
    }
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(parameters(resumed), parameters(whole), atol=0, rtol=0)
    assert resumed.normalizer.state_dict() == whole.normalizer.state_dict()
    timeless = [
        name
        for name in whole.state.log_history[0]
        if name.startswith(("objective/", "pairs/", "rewards/", "kl", "entropy", "completions/"))
    ]
    assert len(timeless) > 12
    for name in timeless:
        assert logged(resumed, name) == pytest.approx(logged(whole, name)), name


def test_rewards_never_see_the_weight_instruction(tmp_path):
    seen = []

    def spy(prompts, completions, **_):
        seen.extend(prompts)
        return [float(len(c)) for c in completions]

    make_trainer(tmp_path, rewards=(spy, capitals)).train()
    assert set(seen) <= set(PROMPTS)
    assert len(seen) >= 2 * 2 * 4


def test_metrics_of_a_step(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    for name in (
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("objective/vowels/mean", "objective/vowels/std", "objective/capitals/mean"),
        *("pairs/active", "pairs/ties", "pairs/duplicates", "pairs/undefined", "pairs/flipped"),
        *("kl", "entropy", "completions/mean_length", "completions/truncated"),
        *("time/generate", "time/score", "time/reference", "tokens_per_second"),
    ):
        assert math.isfinite(entry[name]), name
    # Before the first update the policy is the reference: no margin, no divergence, ln 2.
    assert entry["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert entry["kl"] == pytest.approx(0.0, abs=1e-4)
    assert entry["loss"] == pytest.approx(math.log(2), abs=1e-4)
    # A random model over V tokens is nearly uniform.
    assert entry["entropy"] == pytest.approx(math.log(len(tiny_tokenizer())), rel=0.05)
    fates = sum(entry[f"pairs/{n}"] for n in ("active", "ties", "duplicates", "undefined"))
    assert fates == pytest.approx(1.0)


def test_pairs_from_opposite_weights_count_for_divergence_and_entropy(tmp_path):
    # One completion under each vector: no pair has both from its own, every pair has one.
    trainer = make_trainer(
        tmp_path, max_steps=1, num_generations=2, weights_per_prompt=2, relabel="none"
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["kl"] == pytest.approx(0.0, abs=1e-4)
    assert entry["entropy"] == pytest.approx(math.log(len(tiny_tokenizer())), rel=0.05)
    assert math.isfinite(entry["relabel/log_importance"])


def test_our_own_logs_are_always_written(tmp_path):
    make_trainer(tmp_path, log_completions=3).train()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][:2] == [1, 2]
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert rows[0]["prompt"] in PROMPTS
    assert rows[0]["weight/vowels"] + rows[0]["weight/capitals"] == pytest.approx(1, abs=2e-3)
    assert {"completion_0", "completion_1", "vowels_0", "capitals_1", "chosen"} <= rows[0].keys()


def test_evaluate_gives_every_metric_and_repeats_itself(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:6]}),
        per_device_eval_batch_size=4,
    )
    first, second = trainer.evaluate(), trainer.evaluate()
    for name in ("eval_loss", "eval_objective/vowels/mean", "eval_pairs/active", "eval_kl"):
        assert math.isfinite(first[name]), name
        assert first[name] == pytest.approx(second[name], abs=1e-6), name


def test_a_sweep_joins_the_metrics_and_chooses_the_best_checkpoint(tmp_path):
    values = iter([1.0, 3.0, 2.0])
    trainer = make_trainer(
        tmp_path,
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}),
        sweep=lambda trainer: {"hypervolume": next(values)},
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_hypervolume",
    )
    trainer.train()
    assert logged(trainer, "eval_hypervolume") == [1.0, 3.0, 2.0]
    assert trainer.state.best_metric == 3.0
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")


def test_evaluation_during_training_does_not_change_training(tmp_path):
    held_out = Dataset.from_dict({"prompt": PROMPTS[:4]})
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    watched = make_trainer(
        tmp_path / "watched", eval_dataset=held_out, eval_strategy="steps", eval_steps=1
    )
    watched.train()
    assert len(logged(watched, "eval_loss")) == 2
    assert_same(parameters(watched), parameters(plain), atol=0, rtol=0)


def test_a_step_without_any_winner_moves_nothing(tmp_path):
    def constant(completions, **_):
        return [1.0] * len(completions)

    trainer = make_trainer(
        tmp_path, rewards=(constant, lambda completions, **_: [0.0] * len(completions))
    )
    before = parameters(trainer)
    with pytest.raises(RewardError, match="Not a single pair could be trained on in 2 steps"):
        trainer.train()
    assert_same(parameters(trainer), before, atol=0, rtol=0)
    assert logged(trainer, "loss") == [0.0, 0.0]
    assert logged(trainer, "pairs/active") == [0.0, 0.0]


def test_scores_that_are_missing_never_reach_the_loss(tmp_path):
    def patchy(completions, **_):
        return [None if i % 3 == 0 else float(len(c)) for i, c in enumerate(completions)]

    trainer = make_trainer(tmp_path, rewards=(patchy, capitals))
    trainer.train()
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss"))
    assert all(undefined > 0 for undefined in logged(trainer, "pairs/undefined"))
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_diverged_loss_stops_before_the_weights_are_poisoned(tmp_path):
    trainer = make_trainer(tmp_path)
    refer = trainer.learner.with_reference

    def poison(pairs):
        pairs = refer(pairs)
        pairs.ref_logps.fill_(float("nan"))
        return pairs

    trainer.learner.with_reference = poison
    with pytest.raises(DivergenceError, match="learning_rate"):
        trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_padding_outside_the_embeddings_changes_nothing(tmp_path):
    usual = make_trainer(tmp_path / "usual")
    usual.train()
    tokenizer = tokenizer_with_padding_outside()
    assert tokenizer.pad_token_id >= usual.model.config.vocab_size
    trainer = make_trainer(tmp_path / "outside", tokenizer=tokenizer)
    trainer.train()
    assert_same(parameters(trainer), parameters(usual), rtol=1e-5, atol=1e-6)


def test_a_template_that_writes_the_date_is_told_once_at_the_start(tmp_path):
    dated = CHATML.replace("{% for", "{{ date_string or strftime_now('%Y') }}{% for", 1)
    with pytest.warns(UserWarning, match="today's date .* --chat_template_kwargs") as told:
        trainer = make_trainer(tmp_path, tokenizer=tiny_tokenizer(dated))
    assert len(told) == 1
    fixed = {"chat_template_kwargs": '{"date_string": "1 Jan"}'}
    trainer = make_trainer(tmp_path, tokenizer=tiny_tokenizer(dated), **fixed)
    ids = trainer.collector.encode("Hi", torch.tensor([0.5, 0.5]))
    assert trainer.processing_class.decode(ids).startswith("1 Jan<|im_start|>")
    kept = trainer.manifest().conditioning["chat_template_kwargs"]
    assert kept == {"date_string": "1 Jan"}


def test_the_manifest_remembers_the_run(tmp_path):
    trainer = make_trainer(
        tmp_path, lora=True, save_strategy="steps", save_steps=1, concentration=[0.3, 0.6]
    )
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        manifest = RunManifest.load(folder)
        assert manifest.objectives == ("vowels", "capitals")
        assert manifest.normalizer == trainer.normalizer.state_dict()
        assert manifest.reference["kind"] == "base"
        assert manifest.training["concentration"] == [0.3, 0.6]
        assert manifest.conditioning == trainer.collector.conditioner.to_dict()
        assert (folder / "adapter_model.safetensors").is_file()
        assert "moodpo generate" in (folder / "README.md").read_text()


def test_gradient_checkpointing_gives_the_same_gradient(tmp_path):
    plain = make_trainer(tmp_path / "plain", lora=True)
    plain.train()
    checkpointed = make_trainer(tmp_path / "saved", lora=True, activation_checkpointing=True)
    checkpointed.train()
    assert_same(parameters(checkpointed), parameters(plain), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "robust"])
def test_every_loss_trains(tmp_path, loss_type):
    trainer = make_trainer(tmp_path, loss_type=loss_type, label_smoothing=0.1, max_steps=1)
    before = parameters(trainer)
    trainer.train()
    assert math.isfinite(logged(trainer, "loss")[0])
    assert any(not torch.equal(v, before[n]) for n, v in parameters(trainer).items())


def test_a_second_iteration_may_be_held_to_the_first(tmp_path):
    trainer = make_trainer(tmp_path, reference="initial", start="iter1", base="sft", lora=True)
    trainer.train()
    assert trainer.reference.describe()["kind"] == "initial"
    assert logged(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-4)


def test_a_given_reference_model_is_what_the_loss_is_held_to(tmp_path):
    trainer = make_trainer(tmp_path, ref_model=tiny_model(seed=9), max_steps=1)
    trainer.train()
    assert abs(logged(trainer, "kl")[0]) > 1e-3


def test_columns_reach_reward_functions(tmp_path):
    topics = []

    def on_topic(completions, topic, **_):
        topics.extend(topic)
        return [float(len(c)) for c in completions]

    trainer = MOODPOTrainer(
        tiny_model(),
        reward_funcs=[on_topic, capitals],
        args=config(tmp_path, max_steps=1),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "topic": [p[4] for p in PROMPTS]}),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert set(topics) <= {p[4] for p in PROMPTS}


def test_functions_that_lack_a_column_are_refused_before_any_reward_loads(tmp_path, monkeypatch):
    def judge(completions, solution):
        return [float(c == s) for c, s in zip(completions, solution, strict=True)]

    monkeypatch.setattr("moodpo.training.setup.load_rewards", None)
    with pytest.raises(RewardSpecError, match=r"'judge' needs solution, .* columns completion_ids"):
        make_trainer(tmp_path, rewards=(vowels, judge))


def test_trls_functions_train_on_conversations(tmp_path):
    """Messages and the policy's own tokens reach them as in TRL's trainers."""
    overlong = get_soft_overlong_punishment(12, 12)
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]

    def letters(completions, **_):  # the other two cannot tell this policy's answers apart
        return [len(set(message["content"])) for (message,) in completions]

    trainer = make_trainer(
        tmp_path,
        rewards=(think_format_reward, overlong, letters),
        prompts=conversations,
        max_steps=1,
    )
    trainer.train()
    names = ("think_format_reward", "soft_overlong_punishment_reward", "letters")
    assert trainer.objectives == names
    assert logged(trainer, f"objective/{names[0]}/mean") == [0.0]
    (mean,) = logged(trainer, f"objective/{names[1]}/mean")
    assert mean == pytest.approx(-logged(trainer, "completions/mean_length")[0] / 12, abs=1e-6)


@pytest.mark.parametrize(("limit", "cut"), [(16, 1.0), (100, 0.0)])
def test_it_logs_how_many_inputs_of_reward_models_were_cut(tmp_path, limit, cut):
    rm = build_tiny_gpt2_reward(tmp_path / "rm")
    rewards = (f"rm={rm}#max_tokens={limit}", capitals)
    trainer = make_trainer(tmp_path / "out", rewards=rewards, max_steps=1)
    trainer.train()
    assert logged(trainer, "score/cut") == [cut]


def test_a_model_can_be_named_by_its_path(tmp_path):
    path = save_tiny_policy(tmp_path / "policy")
    trainer = MOODPOTrainer(
        str(path),
        reward_funcs=[vowels, capitals],
        args=config(tmp_path / "out", max_steps=1),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.train()
    assert trainer.manifest().base_model["path"] == str(path)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(RewardSpecError, match="at least two"):
        make_trainer(tmp_path, rewards=(vowels,))
    lora = LoraConfig(r=2, target_modules="all-linear")
    adapted = get_peft_model(tiny_model(), lora)
    with pytest.raises(ConfigError, match="already carries an adapter"):
        MOODPOTrainer(
            adapted,
            reward_funcs=[vowels, capitals],
            args=config(tmp_path),
            processing_class=tiny_tokenizer(),
            peft_config=lora,
        )


def test_a_finished_run_is_no_checkpoint_to_go_on_from(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model()
    with pytest.raises(ConfigError, match=r"lacks .*optimizer\.pt.*--model_path"):
        make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=str(tmp_path))


def test_pairs_of_the_trainer_agree_with_the_rewards(tmp_path):
    trainer = make_trainer(tmp_path, relabel="antithetic")
    trainer.calibrate_once()
    batches = [{"prompts": PROMPTS[:4], "columns": {}}]
    rollout = trainer.collector.collect(
        trainer.processes.prompt_batch(batches), key=(0, "train", 0)
    )
    pairs, _ = trainer.learner.label(rollout)
    normalized = trainer.normalizer.normalize(pairs.rewards)
    utilities = (normalized * pairs.weights[:, None]).sum(-1)
    torch.testing.assert_close(utilities, pairs.utilities, atol=1e-5, rtol=1e-5)
    assert (utilities[:, 0] > utilities[:, 1]).all()
    assert pair_completions(utilities).active.all()
