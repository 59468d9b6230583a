from __future__ import annotations

import itertools
import json
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moodpo.rewards.lexical import (
    LEXICAL,
    LexicalReward,
    LexicalScorer,
    brevity,
    detail,
    neutrality,
    objectivity,
    plainness,
    positivity,
    richness,
    substance,
)

PAIRS = ["".join(pair) for pair in itertools.product(string.ascii_lowercase, repeat=2)]
PROSE = (
    "Warm the pot first, then add two spoons of fresh coffee. Pour water that has just boiled, "
    "wait four minutes, and press slowly so that the grounds stay at the bottom."
)
DEGENERATE = {
    "empty": "",
    "blank": " \n\t ",
    "digits": "1.1, 2, 1.5",
    "symbols": "!!! ??? :)",
    "letters": "x y z q w e r t",
    "one word": "great " * 12,
    "phrase": "I love it. " * 12,
    "long phrase": "I really love how this wonderful coffee smells in the morning. " * 8,
}


def test_substance_by_hand() -> None:
    assert substance(PROSE) == 1.0
    assert substance("Great!") == pytest.approx(1 / 6)
    # Six words, three of them distinct: 3/6 for the floor, (3/6)/0.6 for the window; of the four
    # triples three are distinct: (3/4)/0.8.
    assert substance("red hen sat red hen sat") == pytest.approx(3 / 6 * (0.5 / 0.6) * (0.75 / 0.8))
    # Seven tokens, four with words: (4/7)/0.7; four distinct words of six.
    assert substance("one 2 three 4 five 6 seven") == pytest.approx(4 / 6 * (4 / 7 / 0.7))


@pytest.mark.parametrize("name", sorted(LEXICAL))
@pytest.mark.parametrize("kind", sorted(DEGENERATE))
def test_degenerate_text_earns_next_to_nothing(name: str, kind: str) -> None:
    assert LEXICAL[name].function("Tell me about coffee.", DEGENERATE[kind]) < 0.25


@given(st.lists(st.sampled_from(PAIRS), min_size=6, max_size=60, unique=True))
def test_different_words_have_full_substance(words: list[str]) -> None:
    assert substance(" ".join(words)) == 1.0


@given(st.sampled_from(sorted(LEXICAL)), st.text(max_size=80), st.text(max_size=80))
def test_scores_stay_in_their_documented_range(name: str, prompt: str, completion: str) -> None:
    scorer = LEXICAL[name]
    score = scorer.function(prompt, completion)
    assert scorer.bounds[0] <= score <= scorer.bounds[1]
    assert score == scorer.function(prompt, completion)


@pytest.mark.parametrize("name", sorted(LEXICAL))
def test_empty_text_scores_zero(name: str) -> None:
    assert LEXICAL[name].function("Hello?", "") == 0.0


def test_positivity_is_vaders_compound_on_prose() -> None:
    # "great" has valence 3.1; compound = v / sqrt(v^2 + 15).
    expected = 3.1 / math.sqrt(3.1**2 + 15)
    assert positivity("", "The great hall is on that side") == pytest.approx(expected, abs=1e-4)


def test_gloom_is_not_escaped_by_repetition() -> None:
    assert positivity("", "awful " * 20) < -0.9
    assert positivity("", "great " * 20) < 0.1


def test_neutrality_and_objectivity_conflict_with_cheer() -> None:
    dry = "The treaty was signed in the city hall by both sides"
    cheerful = "What a wonderful and absolutely beautiful day, I love this great city"
    assert neutrality("", dry) == 1.0
    assert objectivity("", dry) == 1.0
    assert neutrality("", cheerful) < 0.1
    assert objectivity("", cheerful) < 0.5
    assert positivity("", cheerful) > 0.9


def test_brevity_by_hand() -> None:
    assert brevity("", " ".join(PAIRS[:8])) == 1.0
    assert brevity("", " ".join(PAIRS[:48])) == pytest.approx(0.5)
    assert brevity("", "Great!") == pytest.approx(1 / 6)
    assert brevity("", PAIRS[0] * 200) < 0.15  # no spaces: 400 characters count as 50 tokens


@given(st.integers(8, 200))
def test_brevity_falls_with_every_word_after_the_eighth(count: int) -> None:
    assert brevity("", " ".join(PAIRS[: count + 1])) < brevity("", " ".join(PAIRS[:count]))


def test_detail_by_hand() -> None:
    words = " ".join(PAIRS[:31])  # 30 neighboring pairs
    assert detail("", words) == pytest.approx(1 - math.exp(-1))
    assert detail(words, words) == 0.0
    assert detail(" ".join(PAIRS[:16]), words) == pytest.approx(1 - math.exp(-0.5))


@given(st.integers(6, 200))
def test_detail_rises_with_every_new_word(count: int) -> None:
    assert detail("", " ".join(PAIRS[: count + 1])) > detail("", " ".join(PAIRS[:count]))


def test_middling_length_lies_outside_the_chord_between_the_extremes() -> None:
    points = [(brevity("", t), detail("", t)) for t in (" ".join(PAIRS[:n]) for n in (8, 40, 100))]
    (b0, d0), (b1, d1), (b2, d2) = points
    share = (b0 - b1) / (b0 - b2)
    assert d1 > d0 + share * (d2 - d0) + 0.1


def test_plainness_by_hand() -> None:
    # Six words, six syllables, one sentence, five distinct words.
    ease = 206.835 - 1.015 * 6 - 84.6
    assert plainness("", "The cat sat on the mat.") == pytest.approx(ease / 117.16 * 5 / 6)
    chopped = "We sat. Dogs ran. He ate. Cats hid. She sang."
    assert plainness("", chopped) == pytest.approx(1.0, abs=1e-4)  # 2 words count as 5


def test_plain_and_rich_words_are_opposite_poles() -> None:
    plain = "We took the old road home and sat by the fire with a cup of tea."
    rich = (
        "Considerable architectural sophistication characterizes innumerable ecclesiastical "
        "monuments throughout continental municipalities."
    )
    assert plainness("", plain) > 0.9 > 0.1 > plainness("", rich)
    assert richness("", rich) > 0.9 > 0.1 > richness("", plain)


def test_richness_by_hand() -> None:
    text = "elephant banana cat dog hen cow pig fox ant bee"  # 2 of 10 are long
    assert richness("", text) == pytest.approx(1 - math.exp(-1))


def test_a_lexical_reward_scores_each_different_row_once_and_in_order() -> None:
    calls = []

    def length(prompt: str, completion: str) -> float:
        calls.append((prompt, completion))
        return float(len(prompt) + len(completion))

    scorer = LexicalScorer(
        name="length", function=length, bounds=(0, 9), summary="long", phrase="", directive=""
    )
    reward = LexicalReward(scorer, name="size")
    conversation = [
        {"role": "user", "content": "long ago"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "ab"},
    ]
    scores = reward.score(["a", conversation, "a", "a"], ["xyz", "", "xyz", "x"])
    assert scores.tolist() == [4.0, 17.0, 4.0, 2.0]  # all turns, blank lines between
    assert sorted(calls) == [("a", "x"), ("a", "xyz"), ("long ago\n\nyes\n\nab", "")]
    assert json.loads(json.dumps(reward.describe())) == {
        "name": "size",
        "kind": "lexical",
        "spec": "length",
        "revision": None,
        "bounds": [0, 9],
    }
