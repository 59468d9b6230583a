from __future__ import annotations

import string

import pytest

from moodpo.rewards.presets import INPUTS, PRESETS, preset_of_checkpoint

# name: (Hub id, input, labels, scored label, its name, pooling)
EXPECTED = {
    "helpful": ("Ray2333/gpt2-large-helpful-reward_model", "hh", 1, 0, None, "last_token"),
    "harmless": ("Ray2333/gpt2-large-harmless-reward_model", "hh", 1, 0, None, "last_token"),
    "humor": ("mohameddhiab/humor-no-humor", "response", 2, 1, "humor", "head"),
    "deberta": ("OpenAssistant/reward-model-deberta-v3-large-v2", "hh", 1, 0, None, "head"),
    "summary": ("Tristan/gpt2_reward_summarization", "tldr", 1, 0, None, "last_token"),
    "faithful": (
        "CogComp/bart-faithful-summary-detector",
        "response-prompt",
        2,
        1,
        "faithful",
        "head",
    ),
}


def test_the_six_presets() -> None:
    assert {
        name: (p.checkpoint, p.input, p.num_labels, p.label, p.label_name, p.pooling)
        for name, p in PRESETS.items()
    } == EXPECTED
    assert all(p.name == name and p.license and p.summary for name, p in PRESETS.items())


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("hh", "\n\nHuman: {prompt} \n\nAssistant:", "{response}"),
        ("response", "{response}", None),
        ("tldr", "{response} {bos} {prompt}", None),
        ("response-prompt", "{response}", "{prompt}"),
        ("prompt-response", "{prompt}", "{response}"),
    ],
)
def test_input_templates(name: str, first: str, second: str | None) -> None:
    assert (INPUTS[name].first, INPUTS[name].second) == (first, second)


def test_templates_have_known_fields_only_and_print_on_one_line() -> None:
    for template in INPUTS.values():
        fields = [f for _, f, _, _ in string.Formatter().parse(template.first) if f]
        assert set(fields) <= {"prompt", "response", "bos"}
        assert "\n" not in str(template)
    assert str(INPUTS["hh"]) == r"(\n\nHuman: {prompt} \n\nAssistant:, {response})"
    assert str(INPUTS["chat"]) == "the checkpoint's chat template"


def test_a_checkpoint_is_recognized_by_its_exact_id_only() -> None:
    faithful = preset_of_checkpoint("CogComp/bart-faithful-summary-detector")
    assert faithful is PRESETS["faithful"]
    assert preset_of_checkpoint("CogComp/bart-faithful-summary-detector-v2") is None
    assert preset_of_checkpoint("summary") is None
