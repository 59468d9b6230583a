from types import SimpleNamespace

from moodpo.generation.base import Completion, SamplingConfig
from moodpo.generation.tokens import count_tokens, end_token_ids, padding_token_id, read_answer
from moodpo.records import Answer
from tiny_policies import tiny_tokenizer


def model_with(eos):
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))


def test_every_end_token_counts_once():
    tokenizer = tiny_tokenizer()
    own = tokenizer.eos_token_id
    assert end_token_ids(model_with([7, own, 3]), tokenizer) == (3, 7, own)
    assert end_token_ids(model_with(3), tokenizer) == (3, own)
    assert end_token_ids(model_with(None), tokenizer) == (own,)
    assert end_token_ids(SimpleNamespace(), SimpleNamespace(eos_token_id=None)) == ()


def test_padding_needs_no_token_of_its_own():
    tokenizer = tiny_tokenizer()
    assert padding_token_id(tokenizer) == tokenizer.pad_token_id
    assert padding_token_id(SimpleNamespace(pad_token_id=None)) == 0


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
