from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moodpo.generation import HFGenerator
from moodpo.generation.base import Completion, SamplingConfig
from moodpo.generation.tokens import (
    completion_text,
    count_tokens,
    end_token_ids,
    padding_token_id,
    read_answer,
    token_roles,
    unknown_token_ids,
)
from moodpo.records import Answer
from tiny_policies import tiny_model, tiny_tokenizer, tokenizer_with_padding_outside


def model_with(eos):
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))


OWN = tiny_tokenizer().eos_token_id


@pytest.mark.parametrize(
    ("held", "ids"),
    [
        ([7, OWN, 3], (3, 7, OWN)),
        ((7, 3), (3, 7, OWN)),
        ({7, 3}, (3, 7, OWN)),
        (torch.tensor([7, 3]), (3, 7, OWN)),
        (torch.tensor(3), (3, OWN)),
        (np.array([3]), (3, OWN)),
        (3, (3, OWN)),
        (None, (OWN,)),
        ([], (OWN,)),
    ],
)
def test_every_end_token_counts_once_whatever_holds_it(held, ids):
    assert end_token_ids(model_with(held), tiny_tokenizer()) == ids
    only_config = SimpleNamespace(config=SimpleNamespace(eos_token_id=held))
    assert end_token_ids(only_config, tiny_tokenizer()) == ids


def test_without_any_end_token_there_is_none():
    assert end_token_ids(SimpleNamespace(), SimpleNamespace(eos_token_id=None)) == ()


def test_an_end_token_that_the_model_cannot_read_is_none():
    model = tiny_model()
    rows = model.config.vocab_size
    model.generation_config.eos_token_id = [rows, rows + 9, -1, 5]
    assert end_token_ids(model, tiny_tokenizer()) == (5, OWN)


def base_tokenizer(*, special):
    """ChatML on a base model: the end of sequence is not what the template closes a turn with."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    else:
        tokenizer.add_tokens(["<|im_end|>"])
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
def test_a_completion_ends_where_the_template_ends_a_turn(special):
    tokenizer = base_tokenizer(special=special)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end != tokenizer.eos_token_id
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert end_token_ids(model, tokenizer) == tuple(sorted((end, tokenizer.eos_token_id)))
    favor(model, end)
    generator = HFGenerator(model, **token_roles(model, tokenizer))
    ((completion,),) = generator.generate(
        [tuple(tokenizer("Hi")["input_ids"])],
        sampling=SamplingConfig(max_new_tokens=9, min_new_tokens=3, temperature=0),
        num_completions=1,
        seeds=[0],
    )
    assert completion.finished
    assert completion.token_ids[-1] == end
    assert len(completion.token_ids) == 4
    assert completion_text(tokenizer, completion) == tokenizer.decode(completion.token_ids[:-1])


def test_padding_is_any_token_that_the_model_can_read():
    tokenizer, model = tiny_tokenizer(), tiny_model()
    assert padding_token_id(tokenizer, model) == tokenizer.pad_token_id
    tokenizer = tokenizer_with_padding_outside()
    assert tokenizer.pad_token_id == model.config.vocab_size
    assert padding_token_id(tokenizer, model) == tokenizer.eos_token_id
    bare = SimpleNamespace(pad_token_id=None, eos_token_id=None)
    assert padding_token_id(bare, model) == 0
    assert padding_token_id(SimpleNamespace(pad_token_id=7), SimpleNamespace()) == 7


def test_rows_without_a_token_are_found():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    assert unknown_token_ids(tiny_model(), tokenizer) == ()
    assert unknown_token_ids(tiny_model(vocab_size=size + 5), tokenizer) == tuple(
        range(size, size + 5)
    )
    assert unknown_token_ids(SimpleNamespace(), tokenizer) == ()


def test_holes_in_a_vocabulary_are_no_tokens_and_twins_are():
    words = {0: "a", 1: "b", 3: "a", 4: "c"}  # 2 is a hole, and "a" is there twice

    def decode(ids):
        return words[ids[0]]

    tokenizer = SimpleNamespace(
        get_vocab=lambda: {word: i for i, word in sorted(words.items(), reverse=True)},
        decode=decode,
    )
    model = SimpleNamespace(get_output_embeddings=lambda: torch.nn.Linear(2, 7))
    assert unknown_token_ids(model, tokenizer) == (2, 5, 6)


def test_rows_without_a_token_are_never_drawn():
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer) + 61)
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in ("Hi", "Tell me", "Why?")]
    sampling = SamplingConfig(max_new_tokens=30)

    def drawn(**roles):
        generator = HFGenerator(model, **{**token_roles(model, tokenizer), **roles})
        answers = generator.generate(prompts, sampling=sampling, num_completions=4, seeds=[1, 2, 3])
        return [t for row in answers for c in row for t in c.token_ids]

    assert max(drawn(forbidden_token_ids=())) >= len(tokenizer)
    assert max(drawn()) < len(tokenizer)
    greedy = SamplingConfig(max_new_tokens=4, temperature=0)
    favor(model, len(tokenizer) + 3)
    generator = HFGenerator(model, **token_roles(model, tokenizer))
    ((one,), *_) = generator.generate(prompts, sampling=greedy, num_completions=1, seeds=[1, 2, 3])
    assert max(one.token_ids) < len(tokenizer)


def favor(model, token):
    """Makes a token the likeliest after anything."""
    bias = torch.zeros(model.config.vocab_size)
    bias[token] = 100.0
    model.lm_head.bias = torch.nn.Parameter(bias)


def test_control_tokens_spelled_in_a_text_count_as_its_characters():
    assert count_tokens(tiny_tokenizer(), ["abc", "", "<pad>"]) == [3, 0, 5]
    assert count_tokens(tiny_tokenizer(), []) == []


def test_an_answer_keeps_what_was_sampled():
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    ids = (*tokenizer("Hi")["input_ids"], end)
    cut = Completion(ids[:2], False, (-0.5, -1.5))
    assert read_answer(tokenizer, Completion(ids, True)) == Answer("Hi", ids, True, None)
    assert read_answer(tokenizer, cut) == Answer("Hi", ids[:2], False, (-0.5, -1.5))
    assert read_answer(tokenizer, Completion((end,), True)) == Answer("", (end,), True)


def test_changed_sampling_stays_possible():
    sampling = SamplingConfig(max_new_tokens=20, min_new_tokens=8, temperature=0.5)
    assert sampling.changed() == sampling
    shorter = sampling.changed(max_new_tokens=4, temperature=None, top_p=0.9)
    assert shorter == SamplingConfig(max_new_tokens=4, min_new_tokens=4, temperature=0.5, top_p=0.9)
    assert sampling.changed(min_new_tokens=2).min_new_tokens == 2
