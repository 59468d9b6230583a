import pytest

from moodpo.rewards import LEXICAL, PRESETS
from moodpo.rewards.words import words_of


def test_words_are_those_of_presets_and_lexical_scorers_in_the_order_asked():
    words = words_of(["richness", "mine", "helpful"])
    assert words["phrases"] == {"richness": "learned in your words", "helpful": "helpful"}
    assert words["directives"] == {
        "richness": "Use a learned, academic style.",
        "helpful": "Help as much as you can.",
    }
    assert list(words["phrases"]) == ["richness", "helpful"]


@pytest.mark.parametrize("name", [*PRESETS, *LEXICAL])
def test_every_named_objective_has_a_phrase_and_a_whole_sentence(name):
    words = words_of([name])
    assert words["phrases"][name].strip()
    assert words["directives"][name][-1] in ".!"
