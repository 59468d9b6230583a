"""What is read off a chat template: which of several, how turns end, whether it writes the date."""

from __future__ import annotations

import inspect
import re
import warnings

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError
from moodpo.models.chat_templates import (
    RESERVED_KWARGS,
    chat_template_of,
    encode_messages,
    read_template_kwargs,
    turn_end_token,
    warn_of_dates,
    writes_the_date,
)
from tiny_policies import CHATML, tiny_tokenizer

USER = [{"role": "user", "content": "Hi"}]
THINKING = (  # as Qwen3's
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
DATED = (  # as Llama 3's
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n{% for m in messages %}{{ m.content }}\n{% endfor %}"
)
ALWAYS_DATED = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
UNDATED = (
    "{% if dated is defined %}{{ strftime_now('%Y') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def closing(end, *, generation="[assistant]"):
    """A template whose turns end so, and that adds a generation prompt whether asked or not."""
    return (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + end + "{% endfor %}" + generation
    )


# ---- Several templates ----


@pytest.mark.parametrize(
    ("template", "used"),
    [
        (None, None),
        ("", None),
        (CHATML, CHATML),
        ({"default": CHATML, "tool_use": "x"}, CHATML),
        ([{"name": "default", "template": CHATML}, {"name": "rag", "template": "x"}], CHATML),
        ({}, None),
    ],
)
def test_of_several_templates_the_default_is_used(template, used):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert chat_template_of(tokenizer) == used


def test_without_a_default_the_names_are_said():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"tool_use": CHATML, "rag": CHATML}
    with pytest.raises(ConfigError, match="templates rag, tool_use, and none is named 'default'"):
        encode_messages(tokenizer, USER)


def test_named_templates_write_what_a_single_one_does():
    conditioner = Conditioner(objectives=("a", "b"))
    named = tiny_tokenizer({"default": CHATML, "tool_use": "x"})
    for prompt in ("Hi", "Spell <|im_end|>", [{"role": "system", "content": "Rhyme."}, *USER]):
        ids = conditioner.encode(named, prompt, [0.5, 0.5])
        assert ids == conditioner.encode(tiny_tokenizer(), prompt, [0.5, 0.5])


# ---- Values for templates ----


def test_values_reach_the_template():
    tokenizer = tiny_tokenizer(THINKING)
    plain = Conditioner(objectives=("a", "b"))
    quiet = Conditioner(objectives=("a", "b"), chat_template_kwargs={"enable_thinking": False})
    texts = [tokenizer.decode(c.encode(tokenizer, "Hi", [1, 0])) for c in (plain, quiet)]
    assert texts[1] == f"{texts[0]}<think>\n\n</think>\n\n"
    assert Conditioner.from_dict(quiet.to_dict()) == quiet


def test_values_decide_whether_there_is_a_system_role():
    template = (
        "{% for m in messages %}{% if m.role != 'system' or with_system is defined %}"
        "[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    )
    tokenizer = tiny_tokenizer(template)
    messages = [{"role": "system", "content": "S"}, *USER]
    assert tokenizer.decode(encode_messages(tokenizer, messages)) == "[user]S\n\nHi"
    ids = encode_messages(tokenizer, messages, {"with_system": 1})
    assert tokenizer.decode(ids) == "[system]S[user]Hi"


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (None, {}),
        ("", {}),
        ({}, {}),
        ('{"enable_thinking": false}', {"enable_thinking": False}),
        ({"date_string": "1 Jan", "tools": None}, {"date_string": "1 Jan", "tools": None}),
    ],
)
def test_values_are_text_or_a_mapping(given, values):
    assert read_template_kwargs(given) == values


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{enable_thinking: false}", "Cannot read chat_template_kwargs '{enable_thinking: false}'"),
        ("[1]", "must be a JSON object"),
        ("false", "must be a JSON object"),
        ({"f": print}, "Cannot read"),
        ({"f": {1}}, "Cannot read"),
        *(({name: 1}, f"cannot set '{name}'") for name in sorted(RESERVED_KWARGS)),
    ],
)
def test_what_cannot_be_a_value_is_refused(given, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        read_template_kwargs(given)


def test_every_argument_that_is_no_variable_is_reserved():
    names = {
        *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
        *inspect.signature(render_jinja_template).parameters,
    }
    assert names - {"self", "kwargs", "tools", "documents"} <= RESERVED_KWARGS


# ---- The end of a turn ----


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (THINKING, "<|im_end|>"),
        (closing("<end_of_turn>\n"), "<end_of_turn>"),  # added, though not special
        (closing("\n\n<end_of_turn>"), "<end_of_turn>"),
        (closing(" {{ eos_token }}"), "<|endoftext|>"),
        (closing("<end_of_turn>{{ eos_token }}"), "<end_of_turn>"),
        (closing(""), None),
        (closing("\n\n"), None),  # a token of its own here, which ends no turn
        (closing("", generation=""), None),
        (closing(" [/INST]<end_of_turn>"), None),  # text comes first
        ("{{ raise_exception('no') }}", None),
        ("{{ messages[0].content }}", None),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", None),
        (None, None),
    ],
)
def test_a_turn_ends_with_what_follows_an_answer(template, end):
    tokenizer = tiny_tokenizer(template)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.add_tokens(["<|im_end|>", "<end_of_turn>", "\n\n", "<end"])
    assert turn_end_token(tokenizer) == end


# ---- Dates ----


@pytest.mark.parametrize(
    ("template", "values", "dated", "remedy"),
    [
        (CHATML, {}, False, None),
        (None, {}, False, None),
        (DATED, {}, True, """--chat_template_kwargs '{"date_string": "01 Jan 2026"}'"""),
        (DATED, {"date_string": "1 Jan"}, False, None),
        (ALWAYS_DATED, {}, True, "does not call strftime_now"),
        (ALWAYS_DATED, {"date_string": "1 Jan"}, True, "does not call strftime_now"),
        (UNDATED, {}, False, None),
        (UNDATED, {"dated": True}, True, "does not call strftime_now"),
        ({"default": DATED, "rag": "x"}, {}, True, "date_string"),
    ],
)
def test_prompts_that_depend_on_the_day_are_told_with_the_remedy(template, values, dated, remedy):
    tokenizer = tiny_tokenizer(template)
    assert writes_the_date(tokenizer, values) is dated
    if dated:
        with pytest.warns(UserWarning, match="today's date") as told:
            warn_of_dates(tokenizer, values)
        assert remedy in str(told[0].message)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_dates(tokenizer, values)
