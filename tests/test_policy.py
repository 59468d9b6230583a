"""`SteerablePolicy`: conditioning, seeds, precision, the base model behind it."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, DataError, GenerationError, ManifestError, WeightsError
from moodpo.evaluation.journal import SweepJournal
from moodpo.evaluation.plan import prompt_seeds
from moodpo.evaluation.sweep import run_sweep
from moodpo.files import hash_weights
from moodpo.generation.base import SamplingConfig
from moodpo.manifest import RunManifest
from moodpo.policy import SteerablePolicy
from moodpo.records import Answer
from tiny_policies import (
    save_tiny_policy,
    tiny_model,
    tiny_tokenizer,
    tokenizer_with_padding_outside,
)

CONDITIONER = Conditioner(objectives=("brevity", "detail"), weight_format="verbal")
EVEN = torch.full((3, 2), 0.5)
PROMPTS = ["Hello", "Tell me more.", "Why?"]
HALF = {"brevity": 0.5, "detail": 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """A strong adapter on the base, as training would save it."""
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config)
    model.base_model.model.config._name_or_path = str(base)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder)
    RunManifest(
        objectives=CONDITIONER.objectives,
        rewards=(),
        conditioning=CONDITIONER.to_dict(),
        scalarization="linear",
        normalizer={},
        reference={},
        base_model={"path": str(base)},
        lineage=({"path": "iter1"},),
        sampling={
            **{"max_prompt_length": 99, "max_new_tokens": 10, "min_new_tokens": 4},
            **{"temperature": 0.9, "top_p": 0.8, "top_k": 3},
        },
    ).save(folder)
    return folder


@pytest.fixture(scope="module")
def policy(adapter):
    return SteerablePolicy.from_pretrained(adapter)


def test_what_training_wrote_is_what_is_used(policy, adapter, base):
    assert policy.objectives == ("brevity", "detail")
    assert policy.conditioner == CONDITIONER
    assert policy.sampling == SamplingConfig(
        max_new_tokens=10, min_new_tokens=4, temperature=0.9, top_p=0.8, top_k=3
    )
    assert policy.describe() == {
        "name": adapter.name,
        "path": str(adapter),
        "kind": "adapter",
        "lineage": [{"path": "iter1"}],
        "sha256": hash_weights(adapter),
    }


def test_prompts_carry_the_instruction(policy, monkeypatch):
    seen = []
    original = policy.generator.generate

    def generate(prompt_ids, **options):
        seen.extend(prompt_ids)
        return original(prompt_ids, **options)

    monkeypatch.setattr(policy.generator, "generate", generate)
    policy.generate(["Hello"], {"brevity": 1.0})
    assert seen == [CONDITIONER.encode(policy.tokenizer, "Hello", (1.0, 0.0))]


@pytest.mark.parametrize("batch", [["Hello"], ["x", "Hello"], PROMPTS])
def test_an_answer_does_not_depend_on_its_neighbors(policy, batch):
    (alone,) = policy.generate("Hello", HALF)
    assert policy.generate(batch, HALF)[batch.index("Hello")] == alone


def test_seed_weights_and_prompt_make_the_answer(policy):
    def ask(**changes):
        options = {"prompts": "Hello", "objective_weights": HALF, "max_new_tokens": 24}
        return policy.generate(**{**options, **changes})

    assert ask() == ask()
    assert ask() != ask(seed=1)
    assert ask() != ask(objective_weights={"brevity": 1.0})
    assert ask() != ask(prompts="Hello!")
    assert ask(temperature=0) == ask(temperature=0, seed=1)


def test_weights_in_every_shape(policy):
    by_name = policy.generate(PROMPTS, {"detail": 1.0})
    assert policy.generate(PROMPTS, (0.0, 1.0)) == by_name
    assert policy.generate(PROMPTS, torch.tensor([0.0, 1.0])) == by_name
    assert policy.generate(PROMPTS, torch.tensor([[0.0, 1.0]] * 3)) == by_name
    each = [{"brevity": 1.0}, (0.5, 0.5), {"detail": 1.0}]
    mixed = policy.generate(PROMPTS, each)
    assert mixed[2] == by_name[2]
    assert mixed[0] == policy.generate("Hello", {"brevity": 1.0})[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"humor": 1.0}, "Unknown objective 'humor'"),
        ((1.0,), "has 1 entries but there are 2 objectives"),
        ([[0.5, 0.5]], "1 rows but there are 3 prompts"),
        ((0.0, 0.0), "All weights are 0"),
    ],
)
def test_weights_that_do_not_fit(policy, weights, message):
    with pytest.raises(WeightsError, match=message):
        policy.generate(PROMPTS, weights)


@pytest.mark.parametrize(
    "weights",
    [
        pd.Series({"detail": 0.9, "brevity": 0.1}),
        pd.DataFrame({"detail": [0.9] * 3, "brevity": [0.1] * 3}, index=[5, 6, 7]),
        [np.array([0.1, 0.9]), torch.tensor([0.1, 0.9]), {"detail": 0.9, "brevity": 0.1}],
        np.array([[0.1, 0.9]] * 3),
    ],
)
def test_labels_of_weights_count_and_not_their_place(policy, weights):
    by_name = policy.generate(PROMPTS, {"brevity": 0.1, "detail": 0.9})
    assert policy.generate(PROMPTS, weights) == by_name
    assert policy.generate(pd.Series(PROMPTS, index=[2, 0, 1]), weights) == by_name


@pytest.mark.parametrize(
    ("prompts", "weights", "error"),
    [
        (None, HALF, DataError),
        (7, HALF, DataError),
        (["Hello", None], HALF, DataError),
        (pd.DataFrame({"prompt": PROMPTS}), HALF, DataError),
        ({"role": "assistant", "content": "a"}, HALF, DataError),
        ([{"role": "system", "content": "no user turn"}], HALF, DataError),
        ([{"content": "no role"}], HALF, DataError),
        ([{"role": "user", "content": [{"type": "text", "text": "parts"}]}], HALF, DataError),
        ("surrogate \ud800", HALF, DataError),
        ("NUL \0", HALF, DataError),
        (" ", HALF, DataError),
        ("Hello", None, WeightsError),
        ("Hello", "brevity=1", WeightsError),
        ("Hello", 1.0, WeightsError),
        ("Hello", {"brevity": None}, WeightsError),
        ("Hello", pd.Series({"humor": 1.0}), WeightsError),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(policy, prompts, weights, error):
    with pytest.raises(error):
        policy.generate(prompts, weights)


def test_a_conversation_that_the_template_refuses_is_bad_input(policy):
    refusing = copy(policy)
    refusing.tokenizer = tiny_tokenizer("{{ raise_exception('Roles must alternate.') }}")
    with pytest.raises(DataError, match=r"template refuses the conversation: Roles must altern"):
        refusing.generate("Hello", HALF)


def test_numbers_out_of_range_are_refused_before_anything_loads(adapter, monkeypatch, policy):
    monkeypatch.setattr("moodpo.policy.find_policy", None)
    with pytest.raises(ConfigError, match="generation_batch_size must be at least 1; got 0"):
        SteerablePolicy.from_pretrained(adapter, generation_batch_size=0)
    for name, value in (("temperature", -1), ("top_p", 2), ("max_new_tokens", 0)):
        with pytest.raises(ConfigError, match=name):
            policy.generate("Hello", HALF, **{name: value})


def test_a_conversation_is_one_prompt(policy):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?"},
    ]
    (answer,) = policy.generate(turns, HALF)
    assert policy.generate([turns], HALF) == [answer]
    single = [{"role": "user", "content": "Hello"}]
    assert policy.generate(single, HALF) == policy.generate("Hello", HALF)
    assert policy.generate(single[0], HALF) == policy.generate("Hello", HALF)
    assert policy.generate([], HALF) == []


def test_lengths_and_counts(policy):
    (answer,) = policy.generate("Hello", HALF, max_new_tokens=2)
    assert len(policy.tokenizer(answer, add_special_tokens=False)["input_ids"]) <= 6  # bytes
    assert policy.sampling_with(max_new_tokens=2).min_new_tokens == 2
    assert policy.sampling_with() == policy.sampling
    assert policy.count_tokens(["abc", "", "<|im_end|>"]) == [3, 0, 10]  # never a control token
    assert policy.count_tokens([]) == []
    with pytest.raises(ConfigError, match="temperature"):
        policy.generate("Hello", HALF, temperature=-1)


def test_sampling_for_sweeps_takes_rows_and_seeds(policy):
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    sampling = SamplingConfig(max_new_tokens=12)
    answers = policy.sample(["a", "a"], weights, seeds=[1, 1], sampling=sampling)
    (second,) = policy.sample(["a"], weights[1:], seeds=[1], sampling=sampling)
    assert answers[1] == second
    assert answers[0].text != answers[1].text


# --- precision ---


def logits(policy):
    ids = torch.tensor([policy.conditioner.encode(policy.tokenizer, "Hello", (1.0, 0.0))])
    with torch.no_grad():
        return policy.model(input_ids=ids).logits.float()


def test_an_adapter_is_merged_exactly_in_float32(policy, adapter, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert not hasattr(policy.model, "disable_adapter")
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    ids = torch.tensor([policy.conditioner.encode(policy.tokenizer, "Hello", (1.0, 0.0))])
    with torch.no_grad():
        expected = unmerged(input_ids=ids).logits
    torch.testing.assert_close(logits(policy), expected, rtol=1e-4, atol=1e-4)
    assert not any(p.requires_grad for p in policy.model.parameters())


def test_an_adapter_is_not_rounded_away_in_bfloat16(adapter):
    half = SteerablePolicy.from_pretrained(adapter, dtype="bfloat16")
    assert hasattr(half.model, "disable_adapter")
    weights = {name: p.dtype for name, p in half.model.named_parameters()}
    assert {d for name, d in weights.items() if "lora" not in name} == {torch.bfloat16}
    assert half.generate("Hello", HALF) == half.generate("Hello", HALF)


def test_devices_and_types(base):
    options = {"objectives": ["a", "b"], "device": "cpu"}
    policy = SteerablePolicy.from_pretrained(base, dtype=torch.float16, **options)
    assert next(policy.model.parameters()).dtype == torch.float16
    with pytest.raises(ConfigError, match="Unknown dtype 'int8'"):
        SteerablePolicy.from_pretrained(base, dtype="int8", **options)


# --- the base model ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_answers_under_the_same_instruction(adapter, base, dtype):
    policy = SteerablePolicy.from_pretrained(adapter, dtype=dtype)
    ours = policy.base_policy()
    plain = SteerablePolicy.from_pretrained(base, conditioner=CONDITIONER, dtype=dtype)
    sampling = SamplingConfig(max_new_tokens=12)
    weights = torch.tensor([[1.0, 0.0]] * 3)
    request = {"weights": weights, "seeds": [1, 2, 3], "sampling": sampling}
    expected = plain.sample(PROMPTS, **request)
    assert ours.sample(PROMPTS, **request) == expected
    assert policy.sample(PROMPTS, **request) != expected  # and the adapter is on again
    assert ours.describe()["kind"] == "base"
    assert ours.objectives == policy.objectives


def model_with_biases():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.3}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tiny_tokenizer()), **sizes, **heads)).eval()


@pytest.mark.parametrize(
    "settings", [{"bias": "all"}, {"bias": "lora_only"}, {"init_lora_weights": "pissa"}]
)
def test_an_adapter_whose_base_is_not_under_it_is_compared_with_the_model_on_disk(
    settings, tmp_path
):
    model_with_biases().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)
    model = get_peft_model(model_with_biases(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    policy = SteerablePolicy(model, tiny_tokenizer(), CONDITIONER, base=str(tmp_path))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model_with_biases()(ids).logits
        assert torch.allclose(policy.base_policy().model(ids).logits, expected, atol=1e-5)
    unknown = SteerablePolicy(model, tiny_tokenizer(), CONDITIONER)
    answers = [Answer("", (1,), True)] * len(PROMPTS)
    assert unknown.kl_to_reference(PROMPTS, EVEN, answers) is None
    with pytest.raises(ManifestError, match="Name a baseline"):
        unknown.base_policy()


def test_a_policy_of_unknown_origin_has_no_base(base):
    policy = SteerablePolicy.from_pretrained(base, objectives=["a", "b"])
    with pytest.raises(ManifestError, match="Name a baseline"):
        policy.base_policy()


# --- models that moodpo did not train ---


def test_a_plain_model_needs_objectives(base):
    with pytest.raises(ManifestError, match=r"objectives=\[\.\.\.\]"):
        SteerablePolicy.from_pretrained(base)
    policy = SteerablePolicy.from_pretrained(base, objectives=["positivity", "mine"])
    assert policy.objectives == ("positivity", "mine")
    assert policy.conditioner.phrases == {"positivity": "cheerful and positive"}
    assert policy.describe()["kind"] == "model"


def test_other_objectives_than_trained_are_refused(adapter):
    assert SteerablePolicy.from_pretrained(adapter, objectives=["brevity", "detail"])
    with pytest.raises(ConfigError, match="was trained for the objectives brevity, detail"):
        SteerablePolicy.from_pretrained(adapter, objectives=["detail", "brevity"])


def test_a_model_in_memory():
    policy = SteerablePolicy(tiny_model(), tiny_tokenizer(), CONDITIONER)
    assert policy.generate("Hello", HALF, max_new_tokens=4) != [""]
    assert policy.describe() == {"sha256": None}


def written(text, *, end=False):
    """An answer as if it had been sampled."""
    tokenizer = tiny_tokenizer()
    ids = (*tokenizer(text)["input_ids"], *[tokenizer.eos_token_id] * end)
    return Answer(text, ids, end)


def logp(model, prompt, row, answer, divisor):
    """Of the sampled tokens, the plain way: one pass, all logits."""
    head = CONDITIONER.encode(tiny_tokenizer(), prompt, row.tolist())
    tail = torch.tensor(answer.token_ids)
    logits = model(input_ids=torch.tensor([[*head, *answer.token_ids]])).logits[0]
    logps = (logits / divisor).log_softmax(-1)
    at = torch.arange(len(head) - 1, len(head) + len(tail) - 1)
    return logps[at, tail].sum().item()


@pytest.mark.parametrize(
    ("temperature", "divisor"), [(None, 0.9), (1.0, 1.0), (0.5, 0.5), (0.0, 1.0)]
)  # None: as in training
def test_kl_is_the_difference_of_two_plain_log_probabilities(policy, base, temperature, divisor):
    weights = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])
    answers = [written("Hi there"), written("", end=True), written("Well, why not?", end=True)]
    sampling = None if temperature is None else policy.sampling_with(temperature=temperature)
    estimates = policy.kl_to_reference(PROMPTS, weights, answers, sampling=sampling)
    reference = SteerablePolicy.from_pretrained(base, conditioner=CONDITIONER).model
    with torch.no_grad():
        expected = [
            logp(policy.model, p, w, a, divisor) - logp(reference, p, w, a, divisor)
            for p, w, a in zip(PROMPTS, weights, answers, strict=True)
        ]
    assert estimates == pytest.approx(expected, abs=1e-3)
    assert all(abs(estimate) > 1e-2 for estimate in estimates)  # the empty answer's, too
    assert policy.base_policy().kl_to_reference(PROMPTS, weights, answers) is None
    texts = [answer.text for answer in answers]
    assert policy.kl_to_reference(PROMPTS, weights, texts) is None  # how they ended is unknown


def test_kl_with_the_adapter_beside_the_base_is_the_same(policy, adapter):
    beside = SteerablePolicy(
        get_peft_model_from(adapter), tiny_tokenizer(), CONDITIONER, base="unused"
    )
    weights = torch.tensor([[0.7, 0.3]])
    answers = [written("Hi there", end=True)]
    estimate = beside.kl_to_reference(PROMPTS[:1], weights, answers, sampling=policy.sampling)
    assert estimate == pytest.approx(
        policy.kl_to_reference(PROMPTS[:1], weights, answers), abs=1e-3
    )
    assert beside.base_policy().kl_to_reference(PROMPTS[:1], weights, answers) == [0.0]


class NoPanel:
    """Rewards that say nothing."""

    names = CONDITIONER.objectives

    def score(self, prompts, completions, columns=None):
        return torch.zeros(len(prompts), 2)


def ending_sooner(base, by):
    """A policy that differs from its base in nothing but how soon it ends."""
    model = tiny_model()
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight.data = model.lm_head.weight.data
    head.bias.data.zero_()[tiny_tokenizer().eos_token_id] = by
    model.lm_head = head
    return SteerablePolicy(
        model.requires_grad_(False), tiny_tokenizer(), CONDITIONER, base=str(base)
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("by", [4.0, -4.0])
def test_a_sweep_measures_what_was_sampled(base, by, temperature):
    policy = ending_sooner(base, by)
    sampling = SamplingConfig(max_new_tokens=6, temperature=temperature)
    prompts = [f"Say {n}" for n in range(24)]
    result = run_sweep(policy, prompts, NoPanel(), weights=[[0.5, 0.5]], sampling=sampling)
    weights = torch.full((24, 2), 0.5)
    seeds = prompt_seeds(0, 24)
    answers = policy.sample(prompts, weights, seeds=seeds, sampling=sampling)
    reference = SteerablePolicy.from_pretrained(base, conditioner=CONDITIONER).model
    expected = [
        logp(policy.model, p, w, a, temperature) - logp(reference, p, w, a, temperature)
        for p, w, a in zip(prompts, weights, answers, strict=True)
    ]
    assert result.kl[0].tolist() == pytest.approx(expected, abs=1e-3)
    assert result.lengths[0].tolist() == [len(answer.token_ids) for answer in answers]
    assert result.finished[0].tolist() == [answer.finished for answer in answers]
    ends = [answer.token_ids[-1] == policy.tokenizer.eos_token_id for answer in answers]
    assert ends == result.finished[0].tolist()
    if by > 0:
        empty = [text == "" for text in result.completions[0]]
        assert any(empty)
        assert (result.lengths[0][empty] == 1).all()  # the end is a token that was sampled
        assert (result.kl[0][empty] > 1.0).all()
        assert result.kl.mean() > 0


def test_an_interrupted_sweep_keeps_the_tokens(base, tmp_path):
    policy = ending_sooner(base, 3.0)
    info = {"name": "sooner", "path": "sooner"}

    def results(name, **options):
        result = run_sweep(
            policy,
            ["a", "b", "c", "d"],
            NoPanel(),
            weights=[[1.0, 0.0], [0.5, 0.5]],
            sampling=SamplingConfig(max_new_tokens=6),
            chunk_size=2,
            policy_info=info,
            baseline_policy=policy.base_policy(),
            baseline_info=info,
            **options,
        )
        replace(result, timings={}).save(tmp_path / name)
        return (tmp_path / name).read_bytes()

    def interrupt(progress):
        if progress.phase == "baseline":
            raise GenerationError("interrupted")

    whole, journal = results("whole.json"), tmp_path / "journal.jsonl"
    with pytest.raises(GenerationError, match="interrupted"):
        results("none.json", resume_path=journal, progress=interrupt)
    header = json.loads(journal.read_text().partition("\n")[0])
    kept = SweepJournal(journal, fingerprint=header["fingerprint"]).answers
    assert len(kept) == 10
    for answer in kept.values():
        assert answer.length == len(answer.token_ids)
        assert answer.finished == (answer.token_ids[-1] == policy.tokenizer.eos_token_id)
    assert results("resumed.json", resume_path=journal) == whole


def get_peft_model_from(adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(tiny_model(), adapter)


def test_the_base_model_is_asked_as_the_policy_is(policy):
    assert policy.base_policy().objectives == ("brevity", "detail")
    backwards = policy.written_by(replace(CONDITIONER, objectives=("detail", "brevity")))
    assert backwards.base_policy().objectives == ("detail", "brevity")


def test_padding_outside_the_embeddings_changes_no_answer():
    usual = SteerablePolicy(tiny_model(), tiny_tokenizer(), CONDITIONER)
    outside = SteerablePolicy(tiny_model(), tokenizer_with_padding_outside(), CONDITIONER)
    assert outside.tokenizer.pad_token_id >= outside.model.config.vocab_size
    answers = usual.generate(PROMPTS, HALF, max_new_tokens=8)
    assert outside.generate(PROMPTS, HALF, max_new_tokens=8) == answers
    alone = [outside.generate(prompt, HALF, max_new_tokens=8)[0] for prompt in PROMPTS]
    assert alone == answers


def test_an_answer_has_no_token_that_closes_its_turn():
    """Of a base model whose template closes turns with a token that is not listed as special."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    tokenizer.add_tokens(["<|im_end|>"])
    model = tiny_model(vocab_size=len(tokenizer))
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 100.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    policy = SteerablePolicy(model, tokenizer, CONDITIONER)
    assert policy.generate(PROMPTS, HALF, max_new_tokens=8) == ["", "", ""]
