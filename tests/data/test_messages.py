"""One prompt, whoever passes it: what becomes of each kind of value."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict

from moodpo.data.messages import as_prompt, as_prompts
from moodpo.errors import DataError

USER = {"role": "user", "content": "Hi"}
TALK = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "a"}, USER]
DATA = Dataset.from_dict({"prompt": ["one", "two"]})


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("Hi", ["Hi"]),
        (["Hi", "two"], ["Hi", "two"]),
        (("Hi", "two"), ["Hi", "two"]),
        ((text for text in ("Hi", "two")), ["Hi", "two"]),
        (USER, [[USER]]),
        ([USER], [[USER]]),
        (TALK, [TALK]),
        (tuple(TALK), [TALK]),
        ([TALK, [USER]], [TALK, [USER]]),
        ([TALK, "Hi"], [TALK, "Hi"]),
        ([{**USER, "name": "Ann"}], [[USER]]),
        (np.array(["Hi", "two"]), ["Hi", "two"]),
        (np.array("Hi"), ["Hi"]),
        ([np.array([USER])], [[USER]]),
        (pd.Series(["Hi", "two"], index=[7, 3]), ["Hi", "two"]),
        (pd.Series([TALK, [USER]]), [TALK, [USER]]),
        (DATA["prompt"], ["one", "two"]),
        ("  spaces stay ", ["  spaces stay "]),
        ([], []),
    ],
)
def test_what_is_passed_as_prompts(given, prompts):
    assert as_prompts(given) == prompts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, r"are None \(NoneType\)"),
        (7, r"are 7 \(int\)"),
        (0.5, r"are 0.5 \(float\)"),
        (b"Hi", r"are b'Hi' \(bytes\)"),
        ({"Hi", "two"}, r"\(set\)"),
        ({"prompt": ["Hi"]}, r"mapping with the keys 'prompt'.*data\['prompt'\]"),
        (DatasetDict(train=DATA), "mapping with the keys 'train'"),
        (DATA, r"rows of a data set.*data\['prompt'\]"),
        (pd.DataFrame({"prompt": ["Hi"]}), r"table \(DataFrame\) with the columns 'prompt'"),
        ({"role": "assistant", "content": "a"}, "ends with a turn of the assistant"),
        ({"role": "user"}, "turn 1 has the content None"),
        ({"content": "Hi", "role": None}, "turn 1 has the role None"),
        ([{"content": "Hi"}], "turn 1 has the role None and the keys 'content'"),
        ([{"type": "text", "text": "Hi"}], "turn 1 has the role None and the keys 'type', 'text'"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "Images and parts"),
        (TALK[:-1], "ends with a turn of the assistant"),
        ([TALK[0]], "ends with a turn of the system"),
        ([TALK, TALK[:-1]], "^prompt 2: the conversation ends"),
        (["Hi", None], "Prompt 2 of 2 holds no text"),
        (["Hi", " \n"], "Prompt 2 of 2 holds no text"),
        ("", "Prompt 1 of 1 holds no text"),
        ([USER, "Hi"], "^prompt 1: the prompt is one message"),
        (["Hi", 7], r"^prompt 2: the prompt is 7 \(int\)"),
        (["Hi", float("nan")], r"prompt is nan \(float\)"),
        (torch.tensor([1.0, 2.0]), r"prompt is 1.0 \(float\)"),
        ("a\0b", "NUL"),
        ("ab\udfff", "character 3 of the prompt is half of a surrogate pair"),
        ([{"role": "user", "content": "\udcff"}], "byte that is not UTF-8"),
    ],
)
def test_what_cannot_be_prompts_is_refused_in_words(given, said):
    with pytest.raises(DataError, match=said):
        as_prompts(given)


def test_a_prompt_without_text_is_none_and_nothing_is_changed():
    turns = [dict(turn, name="Ann") for turn in TALK]
    assert as_prompt(turns) == TALK
    assert turns[0]["name"] == "Ann"
    assert [as_prompt(value) for value in (None, " ", [], [dict(USER, content=" ")])] == [None] * 4
