import itertools
import json
import math
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moodpo.conditioning.instruction import WEIGHT_FORMATS, Conditioner
from moodpo.errors import ConfigError, WeightsError
from moodpo.rewards.words import words_of

NAMES = ("helpful", "harmless")


def simplex(k):
    return st.lists(st.floats(0.001, 1), min_size=k, max_size=k).map(
        lambda values: [v / sum(values) for v in values]
    )


@pytest.mark.parametrize(
    ("weight_format", "expected"),
    [
        ("decimal", "Objective weights: helpful 0.70, harmless 0.30."),
        ("percent", "Objective weights: helpful 70%, harmless 30%."),
        (
            "unary",
            "Objective weights: helpful [# # # # # # # - - -], harmless [# # # - - - - - - -].",
        ),
        ("verbal", "Be very helpful, slightly harmless."),
        ("grouped", "70%: Be helpful. 30%: Be harmless."),
    ],
)
def test_formats_by_hand(weight_format, expected):
    conditioner = Conditioner(objectives=NAMES, weight_format=weight_format)
    assert conditioner.instruction([0.7, 0.3]) == expected


def test_verbal_grades_and_phrases():
    conditioner = Conditioner(
        objectives=("joy", "length"),
        weight_format="verbal",
        phrases={"joy": "cheerful", "length": "brief"},
    )
    sentences = [conditioner.instruction([w, 1 - w]) for w in (1.0, 0.7, 0.5, 0.25, 0.0)]
    assert sentences == [
        "Be extremely cheerful.",
        "Be very cheerful, slightly brief.",
        "Be fairly cheerful, fairly brief.",
        "Be very brief, slightly cheerful.",
        "Be extremely brief.",
    ]


def test_sentences_say_the_strongest_first_and_leave_out_what_hardly_weighs():
    conditioner = Conditioner(
        objectives=("plain", "rich"),
        weight_format="grouped",
        directives={"plain": "Write simply.", "rich": "Use a learned style."},
    )
    sentences = [conditioner.instruction([w, 1 - w]) for w in (1.0, 0.97, 0.5, 0.25)]
    assert sentences == [
        "100%: Write simply.",
        "97%: Write simply.",
        "Balanced (50%, 50%): Write simply. Use a learned style.",
        "75%: Use a learned style. 25%: Write simply.",
    ]


def test_nearly_equal_weights_stand_in_one_group():
    conditioner = Conditioner(objectives=("a", "b", "c"), weight_format="grouped")
    vectors = {
        (0.6, 0.4, 0.0): "Balanced (60%, 40%): Be a. Be b.",
        (0.61, 0.39, 0.0): "61%: Be a. 39%: Be b.",
        (0.5, 0.25, 0.25): "50%: Be a. Balanced (25%, 25%): Be b. Be c.",
        # A group is as wide as its strongest member allows, however close its neighbors are.
        (0.15, 0.5, 0.35): "Balanced (50%, 35%): Be b. Be c. 15%: Be a.",
        (0.4, 0.3, 0.3): "Balanced (40%, 30%, 30%): Be a. Be b. Be c.",
        (0.0, 0.02, 0.98): "98%: Be c.",
    }
    assert {weights: conditioner.instruction(weights) for weights in vectors} == vectors


@given(simplex(4))
def test_groups_say_shares_and_sentences_in_one_order_the_largest_first(weights):
    text = Conditioner(objectives=tuple("abcd"), weight_format="grouped").instruction(weights)
    shares = [int(share) for share in re.findall(r"(\d+)%", text)]
    named = ["abcd".index(name) for name in re.findall(r"Be (.)", text)]
    assert shares == sorted(shares, reverse=True)
    assert all(abs(s - 100 * weights[k]) < 1.01 for s, k in zip(shares, named, strict=True))


def written(weights, weight_format="percent", names="abcdefgh"):
    """The numbers in an instruction, in the order of the weights, as whole shares."""
    conditioner = Conditioner(objectives=tuple(names[: len(weights)]), weight_format=weight_format)
    parts = conditioner.instruction(weights).split(":")[1].rstrip(".").split(",")
    if weight_format == "unary":
        return [part.count("#") for part in parts]
    numbers = [float(part.split()[-1].rstrip("%")) for part in parts]
    return [round(n * (100 if weight_format == "decimal" else 1)) for n in numbers]


UNITS = {"percent": 100, "decimal": 100, "unary": 10}
# Ties and equal weights are what rounding gets wrong, and random floats hardly ever have them.
COARSE = st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(any)
FINE = st.lists(st.floats(0.0, 1), min_size=2, max_size=6).filter(any)
VECTORS = st.one_of(COARSE, FINE).map(lambda values: [v / math.fsum(values) for v in values])


def float32(weights):
    return torch.tensor(weights, dtype=torch.float32).tolist()


@pytest.mark.parametrize("weight_format", UNITS)
@given(weights=VECTORS)
def test_shares_are_rounded_by_one_rule(weight_format, weights):
    units = UNITS[weight_format]
    shares = written(weights, weight_format)
    # six decimals is what weights are read to
    assert all(abs(s - w * units) < 1 + 1e-4 for s, w in zip(shares, weights, strict=True))
    read = [round(w, 6) for w in float32(weights)]
    for i, j in itertools.combinations(range(len(read)), 2):
        if read[i] == read[j]:
            assert shares[i] == shares[j]
        else:  # what weighs more is never shown with less
            assert (shares[i] - shares[j]) * (read[i] - read[j]) >= 0
    if len(set(read)) == len(read):
        assert sum(shares) == units


@pytest.mark.parametrize("weight_format", UNITS)
@given(weights=VECTORS, random=st.randoms(use_true_random=False))
def test_the_order_of_objectives_decides_nothing_about_shares(weight_format, weights, random):
    order = random.sample(range(len(weights)), len(weights))
    shares = written(weights, weight_format)
    assert written([weights[k] for k in order], weight_format) == [shares[k] for k in order]


@pytest.mark.parametrize("weight_format", ["verbal", "grouped"])
@given(weights=VECTORS, random=st.randoms(use_true_random=False))
def test_sentences_read_alike_in_any_order_of_objectives(weight_format, weights, random):
    order = random.sample(range(len(weights)), len(weights))
    here, there = (
        Conditioner(objectives=tuple("abcdef"[k] for k in some), weight_format=weight_format)
        for some in (range(len(weights)), order)
    )
    assert here.instruction(weights) == there.instruction([weights[k] for k in order])


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@given(weights=VECTORS)
def test_a_tensor_changes_no_text(weight_format, weights):
    names = tuple("abcdef"[: len(weights)])
    conditioner = Conditioner(objectives=names, weight_format=weight_format)
    assert conditioner.instruction(float32(weights)) == conditioner.instruction(weights)


@given(st.integers(0, 100), st.integers(0, 100))
def test_two_decimals_are_written_as_they_are(first, second):
    first, second = sorted((first, second))
    shares = [first, second - first, 100 - second]
    assert written([s / 100 for s in shares], "decimal") == shares
    assert written(float32([s / 100 for s in shares])) == shares


@pytest.mark.parametrize(
    ("weight_format", "weights", "shares"),
    [
        ("decimal", [0.125, 0.875], [12, 88]),  # of a tie, the larger weight gets the unit
        ("decimal", [0.875, 0.125], [88, 12]),
        ("percent", [0.145, 0.855], [14, 86]),
        ("percent", [0.005, 0.995], [0, 100]),
        ("percent", [0.005, 0.105, 0.89], [0, 11, 89]),
        ("percent", [1 / 7, 6 / 7], [14, 86]),
        ("percent", [1 / 3, 1 / 3, 1 / 3], [33, 33, 33]),  # equals are equal, whatever the sum
        ("percent", [1 / 6] * 6, [17] * 6),
        ("percent", [0.495, 0.495, 0.01], [50, 50, 1]),
        ("unary", [0.9, 0.05, 0.05], [9, 1, 1]),
        ("unary", [0.15, 0.85], [1, 9]),
        ("unary", [0.55, 0.45], [6, 4]),
        ("unary", [0.5, 0.25, 0.25], [5, 3, 3]),
    ],
)
def test_ties_and_equals_by_hand(weight_format, weights, shares):
    assert written(weights, weight_format) == shares
    assert written(float32(weights), weight_format) == shares


def test_the_embedded_defaults_instructions_are_what_they_were():
    plain = "Write simply, as for a small child, with short words."
    rich = "Use a learned, academic style."
    names = ("plainness", "richness")
    conditioner = Conditioner(objectives=names, **words_of(names))
    for write in (list, float32):
        assert [conditioner.instruction(write([w, 1 - w])) for w in (0, 0.25, 0.5, 0.75, 1)] == [
            f"100%: {rich}",
            f"75%: {rich} 25%: {plain}",
            f"Balanced (50%, 50%): {plain} {rich}",
            f"75%: {plain} 25%: {rich}",
            f"100%: {plain}",
        ]


@pytest.mark.parametrize("weight_format", ["verbal", "grouped"])
@pytest.mark.parametrize("count", [2, 7, 20, 21, 25, 100, 250])
def test_many_equal_objectives_are_all_asked_for(weight_format, count):
    names = tuple(f"n{k}" for k in range(count))
    conditioner = Conditioner(objectives=names, weight_format=weight_format)
    text = conditioner.instruction([1 / count] * count)
    assert sorted(re.findall(r"n\d+", text)) == sorted(names)
    assert "0%" not in text.replace("50%", "")


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ((0.9, 0.1), "Be extremely helpful."),  # not "not harmless", which asks for harm
        ((1.0, 0.0), "Be extremely helpful."),
        ((0.85, 0.15), "Be extremely helpful, slightly harmless."),
        ((0.0, 1.0), "Be extremely harmless."),
        ((0.4, 0.6), "Be very harmless, fairly helpful."),
    ],
)
def test_a_weight_of_nothing_asks_for_nothing(weights, text):
    conditioner = Conditioner(objectives=NAMES, weight_format="verbal")
    assert conditioner.instruction(weights) == text
    assert conditioner.instruction(float32(weights)) == text


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
@given(weights=VECTORS)
def test_no_instruction_is_empty(weight_format, weights):
    names = tuple("abcdef"[: len(weights)])
    text = Conditioner(objectives=names, weight_format=weight_format).instruction(weights)
    assert re.search("[a-f]", text.replace("Be ", "").replace("Objective weights", ""))
    assert not re.search("[^ -]not ", text)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -0.5])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(WeightsError, match="finite"):
        Conditioner(objectives=NAMES).instruction([weight, 0.5])


def test_user_templates():
    named = Conditioner(objectives=NAMES, template="H={helpful} S={harmless}")
    assert named.instruction([0.7, 0.3]) == "H=0.70 S=0.30"
    whole = Conditioner(
        objectives=NAMES, weight_format="decimal", template="Mix {{now}}: {weights}"
    )
    assert whole.instruction([0.7, 0.3]) == "Mix {now}: helpful 0.70, harmless 0.30"


@pytest.mark.parametrize(
    "template",
    [
        *("{helpful} only", "{weights} {typo}", "{weights", "nothing", "{} {weights}", "{0}"),
        *("{weights:>9}", "{weights!r}", "{helpful:.3f} {harmless}", "{weights:{helpful}}"),
        *("{weights.real}", "{weights[0]}"),
    ],
)
def test_templates_that_cannot_work_are_refused(template):
    with pytest.raises(ConfigError, match="template"):
        Conditioner(objectives=NAMES, template=template)


def test_an_objective_may_be_named_as_it_likes():
    names = ("a.b", "c d", "e-f[0]")
    conditioner = Conditioner(objectives=names, template="{a.b} {c d} {e-f[0]} {{x}} {weights}")
    text = conditioner.instruction([0.25, 0.25, 0.5])
    assert text.startswith("0.25 0.25 0.50 {x} 50%: Be e-f[0]. Balanced (25%, 25%): Be a.b.")
    braces = Conditioner(objectives=("{", "x:y", "weights"), weight_format="decimal")
    assert braces.instruction([0.2, 0.8, 0]) == (
        "Objective weights: { 0.20, x:y 0.80, weights 0.00."
    )
    assert Conditioner(objectives=("x:y", "b"), template="{weights}").instruction([0, 1])


def test_an_objective_named_weights_and_a_template_are_refused():
    with pytest.raises(ConfigError, match="named 'weights'"):
        Conditioner(objectives=("weights", "b"), template="{weights} {b}")


def test_unknown_formats_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="decimal, percent, unary, verbal, grouped"):
        Conditioner(objectives=NAMES, weight_format="roman")


@pytest.mark.parametrize("weight_format", ["directive", "verbal+decimal", "directive+verbal"])
def test_formats_that_are_no_more_say_what_to_use(weight_format):
    with pytest.raises(ConfigError, match=r"no (more|longer).*[uU]se .*grouped"):
        Conditioner(objectives=NAMES, weight_format=weight_format)
    trained = {**Conditioner(objectives=NAMES).to_dict(), "weight_format": weight_format}
    with pytest.raises(ConfigError, match=r"trained with weight_format .* or train one with"):
        Conditioner.from_dict(trained)


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_round_trip_through_a_dictionary(weight_format):
    conditioner = Conditioner(
        objectives=NAMES, weight_format=weight_format, phrases={"helpful": "of use"}
    )
    assert Conditioner.from_dict(conditioner.to_dict()) == conditioner


def test_messages_put_the_instruction_before_the_prompts_own_system_turn():
    conditioner = Conditioner(objectives=NAMES)
    own = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hi"}]
    messages = conditioner.messages(own, [0.5, 0.5])
    assert messages[0]["content"] == f"{conditioner.instruction([0.5, 0.5])}\n\nRhyme."
    assert [m["role"] for m in messages] == ["system", "user"]
    assert own[0]["content"] == "Rhyme."  # the input is left as it was
    assert conditioner.messages("Hi", None) == [{"role": "user", "content": "Hi"}]


def test_prompt_templates_frame_the_users_text_alone():
    conditioner = Conditioner(objectives=NAMES, prompt_template="Summarize: {prompt}")
    messages = conditioner.messages("a {prompt} of {braces}", [0.5, 0.5])
    assert messages[1]["content"] == "Summarize: a {prompt} of {braces}"
    with pytest.raises(ConfigError, match=r"no \{prompt\}"):
        Conditioner(objectives=NAMES, prompt_template="Summarize:")


def test_what_may_be_asked_is_remembered_and_otherwise_not_spoken_of():
    plain = Conditioner(objectives=NAMES)
    assert "chat_template_kwargs" not in plain.to_dict()
    rich = Conditioner(
        objectives=NAMES,
        chat_template_kwargs={"enable_thinking": False},
    )
    assert Conditioner.from_dict(json.loads(json.dumps(rich.to_dict()))) == rich


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("signed", ["helpful"], r"signed_objectives of helpful\. No language model"),
        ("lower_bounds", {"helpful": [0.1, 0.5]}, r"lower_bounds of helpful\. In the laboratory"),
    ],
)
def test_a_policy_trained_for_what_is_no_more_is_refused(key, value, message):
    written = Conditioner(objectives=NAMES).to_dict()
    assert Conditioner.from_dict({**written, key: type(value)()}) == Conditioner(objectives=NAMES)
    with pytest.raises(ConfigError, match=f"{message}.*the moodpo release that trained it"):
        Conditioner.from_dict({**written, key: value})


def test_a_wrong_count_of_weights_is_refused():
    with pytest.raises(WeightsError, match="3 entries"):
        Conditioner(objectives=NAMES).instruction([1, 0, 0])
