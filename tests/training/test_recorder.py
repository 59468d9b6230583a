"""What a run shows of its samples is what it trains."""

from __future__ import annotations

import contextlib
import json

import pytest

from moodpo.errors import RewardError
from tiny_trainers import PROMPTS, capitals, make_trainer, vowels

SPREAD = {"num_generations": 4, "weights_per_prompt": 2, "relabel": "none"}


def letters(completions, **_):
    """Few values, so that some completions are worth the same."""
    return [float(any(c.isalpha() for c in text)) for text in completions]


def same(completions, **_):
    return [1.0] * len(completions)


def some(completions, **_):
    """No score for some."""
    return [None if len(text) % 3 == 0 else float(len(text)) for text in completions]


def train_and_watch(folder, settings):
    """The rows of the log, and what was trained: (prompt, weights) → texts of chosen, rejected."""
    trainer = make_trainer(folder, max_steps=1, log_completions=99, **settings)
    trained = {}
    compute_loss = trainer.compute_loss

    def watched(model, inputs, **options):
        pairs = inputs["micro_batch"].pairs
        for prompt_ids, pair, weights in zip(
            pairs.prompt_ids, pairs.completion_ids, pairs.weights.tolist(), strict=True
        ):
            read = trainer.processing_class.decode(prompt_ids)
            (prompt,) = (text for text in PROMPTS if text in read)
            texts = trainer.processing_class.batch_decode(pair, skip_special_tokens=True)
            trained[prompt, tuple(round(w, 3) for w in weights)] = texts
        return compute_loss(model, inputs, **options)

    trainer.compute_loss = watched
    with contextlib.suppress(RewardError):  # where not a single pair is ever active
        trainer.train()
    lines = (folder / "completions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], trained


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ("vowels", "capitals")),
        ({"relabel": "antithetic"}, ("vowels", "capitals")),
        ({**SPREAD}, ("vowels", "capitals")),
        ({**SPREAD, "scalarization": "chebyshev"}, ("vowels", "capitals")),
        ({**SPREAD, "label_temperature": 0.5}, ("vowels", "capitals")),
        ({**SPREAD}, ("letters", "capitals")),
        ({**SPREAD}, ("some", "capitals")),
        ({**SPREAD}, ("same", "same")),
        ({"num_generations": 4}, ("vowels", "capitals")),
        ({"num_generations": 2, "weights_per_prompt": 2}, ("vowels", "capitals")),
    ],
)
def test_the_logged_choice_is_what_was_trained(tmp_path, settings, names):
    functions = {"vowels": vowels, "capitals": capitals, "letters": letters, "some": some}
    rewards = [functions.get(name, same) for name in names]
    if names == ("same", "same"):  # two rewards need two names
        rewards = [lambda completions, f=f, **_: f(completions) for f in (same, same)]
        for reward, name in zip(rewards, ("one", "two"), strict=True):
            reward.__name__ = name
    objectives = [reward.__name__ for reward in rewards]
    rows, trained = train_and_watch(tmp_path, {"rewards": rewards, **settings})
    rows_of_a_prompt = settings.get("weights_per_prompt", 1)
    completions = settings.get("num_generations", 2)
    assert len(rows) == 4 * rows_of_a_prompt
    chosen = 0
    for row in rows:
        texts = [row[f"completion_{j}"] for j in range(completions)]
        assert f"completion_{completions}" not in row
        key = (row["prompt"], tuple(row[f"weight/{name}"] for name in objectives))
        if row["chosen"] is None:
            assert row["rejected"] is None
            assert key not in trained
        else:
            chosen += 1
            assert [texts[row["chosen"]], texts[row["rejected"]]] == trained[key]
    if settings.get("relabel") == "none":
        assert chosen == len(trained)  # nothing was trained that the log does not show
    assert (chosen > 0) == (names != ("same", "same"))


def test_completions_of_all_weights_are_shown_under_each(tmp_path):
    rows, _ = train_and_watch(tmp_path, {**SPREAD})
    columns = [name for name in rows[0] if name.startswith("completion_")]
    assert len(columns) == 4
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["prompt"] == second["prompt"]
        assert [first[c] for c in columns] == [second[c] for c in columns]
        assert [first[f"vowels_{j}"] for j in range(4)] == [
            round(value, 4) for value in vowels([first[c] for c in columns])
        ]
        assert (first["sampled"], second["sampled"]) == ("0, 1", "2, 3")
        assert first["weight/vowels"] == pytest.approx(second["weight/capitals"], abs=2e-3)
