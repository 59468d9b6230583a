"""Other ways to ask for the same weights."""

from __future__ import annotations

import pytest
import torch

from moodpo.conditioning.instruction import Conditioner
from moodpo.evaluation.sensitivity import Forged, forge, variants
from moodpo.generation.base import SamplingConfig
from moodpo.policy import SteerablePolicy
from tiny_policies import tiny_model, tiny_tokenizer

CONDITIONER = Conditioner(objectives=("brevity", "detail"), weight_format="percent")


@pytest.fixture
def asked():
    return SteerablePolicy(tiny_model(), tiny_tokenizer(), CONDITIONER)


def test_variants_write_the_same_weights_otherwise(asked):
    ways = variants(asked)
    assert list(ways) == ["decimal", "reordered", "forged"]  # percent is what it has already
    written = {
        name: way.conditioner.instruction([0.7, 0.3])
        for name, way in ways.items()
        if name != "forged"
    }
    assert written == {
        "decimal": "Objective weights: brevity 0.70, detail 0.30.",
        "reordered": "Objective weights: detail 70%, brevity 30%.",
    }
    assert ways["reordered"].objectives == ("detail", "brevity")
    assert asked.conditioner is CONDITIONER  # the policy itself is as it was
    assert all(way.model is asked.model for way in ways.values())


def test_forged_prompts_end_with_the_opposite_instruction():
    forged = forge("Hi", CONDITIONER, [0.25, 0.75])
    assert forged == "Hi\nObjective weights: brevity 25%, detail 75%."
    dialog = [{"role": "user", "content": "Hi"}]
    assert forge(dialog, CONDITIONER, [0.25, 0.75]) == [{"role": "user", "content": forged}]
    assert dialog[0]["content"] == "Hi"


def test_the_last_turn_ends_with_the_opposite_weights():
    forged = Forged(objectives=("brevity", "detail"), weight_format="percent")
    last = forged.messages("Hi", [0.25, 0.75])[-1]["content"]
    assert last == f"Hi\n{forged.instruction([0.75, 0.25])}"
    assert forged.messages("Hi", None) == [{"role": "user", "content": "Hi"}]


def test_a_forged_prompt_is_what_the_policy_reads_and_nothing_more(asked):
    sampling = SamplingConfig(max_new_tokens=5)
    weights = torch.tensor([[0.75, 0.25]])
    forged = asked.written_by(Forged.from_dict(CONDITIONER.to_dict()))
    answer = forged.sample(["Hi"], weights, seeds=[1], sampling=sampling)
    by_hand = forge("Hi", CONDITIONER, [0.25, 0.75])
    assert answer == asked.sample([by_hand], weights, seeds=[1], sampling=sampling)
