"""A trainer refuses, drops and cuts what the command line does, before anything is loaded."""

from __future__ import annotations

import logging

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict

from moodpo.conditioning.instruction import Conditioner
from moodpo.data.lengths import longest_instruction
from moodpo.data.prompts import load_prompts
from moodpo.errors import ConfigError, DataError
from moodpo.training.datasets import check_dataset, check_datasets
from moodpo.training.trainer import MOODPOTrainer
from tiny_policies import tiny_model, tiny_tokenizer
from tiny_trainers import PROMPTS, capitals, config, make_trainer, vowels

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Ho"}
DATA = Dataset.from_dict({"prompt": ["one", "two"], "kind": ["x", "y"]})


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


ROWS = [{"prompt": "one", "kind": "x"}, {"prompt": "two", "kind": "y"}]


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(ROWS),
        Rows(ROWS),
        DATA.with_format("torch"),
        DATA.rename_column("prompt", "text").with_transform(
            lambda batch: {"prompt": batch["text"], "kind": batch["kind"]}
        ),
        DATA.select([1, 0]).select([1, 0]),
        [{"prompt": None, "kind": "z"}, *ROWS, {"kind": "z"}, {"prompt": " ", "kind": "z"}],
        Dataset.from_pandas(pd.DataFrame(ROWS, index=[3, 1]), preserve_index=False),
    ],
    ids=["list", "tuple", "torch", "format", "transform", "selected", "empty", "pandas"],
)
def test_rows_from_anywhere(given):
    loaded = check_dataset(given, "train_dataset")
    assert loaded.prompts == ["one", "two"]
    assert list(loaded.dataset["kind"]) == ["x", "y"]


def test_a_clean_data_set_is_taken_as_it_is(tmp_path):
    assert check_dataset(DATA, "train_dataset").dataset is DATA
    path = tmp_path / "p.csv"
    path.write_text("prompt\none\n")
    loaded = load_prompts(path)
    assert check_dataset(loaded, "train_dataset") is loaded


def test_what_is_dropped_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        check_dataset(Dataset.from_dict({"prompt": ["a", "", None]}), "train_dataset")
    assert "train_dataset: kept 1 of 3 prompts (empty dropped: 2)" in caplog.text


def of(*prompts):
    return Dataset.from_dict({"prompt": list(prompts)})


UNUSABLE = [
    (DATA.rename_column("prompt", "text"), "no column 'prompt'; it has 'text', 'kind'.*'text', "),
    (DatasetDict(train=DATA, test=DATA), r"DatasetDict of the splits 'train', 'test'.*\['train'\]"),
    (IterableDatasetDict(train=DATA.to_iterable_dataset()), r"splits 'train'.*dataset\['train'\]"),
    (DATA.to_iterable_dataset(), "no length.*take"),
    ((row for row in ROWS), "generator, which has no length"),
    (pd.DataFrame(ROWS), "DataFrame.*from_pandas"),
    ({"prompt": ["one"]}, "from_dict"),
    ("prompts.csv", r"load_prompts\(path\)"),
    (7, "int, which has no length"),
    ({"one", "two"}, "no order"),
    (["one", "two"], r"row 'one' \(str\).*from_dict"),
    ([{"prompt": "a", "x": 1}, {"prompt": "b", "x": "y"}], "do not fit columns"),
    ([], "has no rows"),
    (Dataset.from_dict({"prompt": []}), "has no rows"),
    (of(None, " "), "no prompts"),
    (of(1, 2), r"row 1: the prompt is 1 \(int\)"),
    (of("a", "b\0"), "row 2: .*NUL"),
    (of([USER, ANSWER]), "row 1: the conversation ends with a turn of the assistant"),
    (of([USER], [USER, ANSWER]), "row 2: the conversation ends"),
    (of([{"content": "Hi"}]), "row 1: turn 1 has the role None"),
    (of([{"role": "user"}]), "row 1: turn 1 has the content None"),
    (of([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]), "Images and parts"),
    ([{"prompt": "a"}, {"prompt": [USER]}], "do not fit columns|mixed"),
]


@pytest.mark.parametrize(("given", "said"), UNUSABLE)
def test_what_cannot_be_trained_on_is_refused_in_words(given, said, tmp_path):
    with pytest.raises(DataError, match=f"(?s)^the_name.*{said}"):
        check_dataset(given, "the_name")


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("given", [UNUSABLE[0][0], UNUSABLE[3][0], UNUSABLE[5][0], of(None)])
def test_nothing_is_loaded_for_an_unusable_data_set(given, name, tmp_path, monkeypatch):
    monkeypatch.setattr("moodpo.training.trainer.load_given", None)
    datasets = {"train_dataset": DATA, name: given}
    with pytest.raises(DataError, match=f"^{name}"):
        MOODPOTrainer("org/policy", reward_funcs=[], args=config(tmp_path), **datasets)


def test_several_held_out_sets_are_checked_by_name(tmp_path):
    args = config(tmp_path)
    _, held_out = check_datasets(args, DATA, {"a": DATA, "b": ROWS})
    assert {name: each.prompts for name, each in held_out.items()} == {
        "a": ["one", "two"],
        "b": ["one", "two"],
    }
    with pytest.raises(DataError, match=r"eval_dataset\['b'\] has no column 'prompt'"):
        check_datasets(args, DATA, {"a": DATA, "b": UNUSABLE[0][0]})
    args = config(tmp_path, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ConfigError, match="eval_strategy=steps needs held-out prompts"):
        check_datasets(args, DATA, None)


# ---- Lengths ----

OBJECTIVES = Conditioner.of(("vowels", "capitals"))


def length(prompt):
    tokenizer = tiny_tokenizer()
    return len(OBJECTIVES.encode(tokenizer, prompt, longest_instruction(OBJECTIVES, tokenizer)))


LONG = "Say something long, please, and then something longer."


@pytest.mark.parametrize(
    ("overflow", "kept"), [("drop", ["Hi", "Ho"]), ("truncate", ["Hi", LONG[:10].rstrip(), "Ho"])]
)
def test_limits_hold_in_python_and_the_manifest_tells_the_truth(overflow, kept, tmp_path, caplog):
    limit = length(LONG[:10])
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(
            tmp_path,
            prompts=["Hi", LONG, "Ho"],
            eval_dataset={"first": of("Ho", LONG), "second": [{"prompt": "Ho"}]},
            max_prompt_length=limit,
            prompt_overflow=overflow,
        )
    assert list(trainer.train_dataset["prompt"]) == kept
    assert len(trainer.eval_dataset["first"]) == (1 if overflow == "drop" else 2)
    assert "train_dataset: kept" in caplog.text
    assert trainer.manifest().sampling["max_prompt_length"] == limit
    trainer._calibrate_once()
    rows = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    batch = trainer._prompt_batch([trainer.data_collator(rows)])
    rollout = trainer._collect(batch, (0, "train", 0))
    assert max(map(len, rollout.prompt_ids)) <= limit
    (asked,) = trainer.get_eval_dataloader(of("Ho", LONG))
    assert asked["prompts"] == [p for p in kept if p != "Hi"][::-1]
    with pytest.raises(DataError, match="has no column 'prompt'"):
        trainer.evaluate([{"text": "Hi"}])


def test_nothing_fits(tmp_path):
    with pytest.raises(DataError, match=r"train_dataset: all 12 prompts are longer"):
        make_trainer(tmp_path, max_prompt_length=9)


def test_no_room_in_the_model(tmp_path):
    with pytest.raises(ConfigError, match=r"2048 positions.*max_prompt_length to 2036 or less"):
        make_trainer(tmp_path, max_prompt_length=2037)


def test_the_last_batch_is_not_dropped_where_it_is_the_only_one(tmp_path):
    settings = {"dataloader_drop_last": True, "per_device_train_batch_size": 4}
    with pytest.raises(ConfigError, match="3 prompts, and a batch of all processes has 4"):
        make_trainer(tmp_path, prompts=PROMPTS[:3], **settings)
    assert len(make_trainer(tmp_path, prompts=PROMPTS[:4], **settings).get_train_dataloader()) == 1


def test_a_reader_of_files_may_hand_over_what_it_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,kind\n" + "".join(f"{p},x\n" for p in PROMPTS[:3]))
    trainer = MOODPOTrainer(
        tiny_model(),
        reward_funcs=[vowels, capitals],
        args=config(tmp_path, max_steps=1, per_device_train_batch_size=3),
        train_dataset=load_prompts(path),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert trainer.state.global_step == 1
