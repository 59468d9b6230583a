import warnings

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moodpo.conditioning import (
    WEIGHT_FORMATS,
    Conditioner,
    parse_weights,
    validate_weights,
)
from moodpo.errors import ConfigError, WeightsError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)
SILENT_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}[assistant]"
)
CONTROL = ("<|im_start|>", "<|im_end|>")
NAMES = ("helpful", "harmless")


def make_tokenizer(chat_template=CHATML):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=CONTROL[1], extra_special_tokens=[CONTROL[0]]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


TOKENIZER = make_tokenizer()


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
        ("directive", "70%: Be helpful. 30%: Be harmless."),
        (
            "verbal+decimal",
            "Be very helpful, slightly harmless. Objective weights: helpful 0.70, harmless 0.30.",
        ),
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
        "Be extremely cheerful, not brief.",
        "Be very cheerful, slightly brief.",
        "Be fairly cheerful, fairly brief.",
        "Be very brief, slightly cheerful.",
        "Be extremely brief, not cheerful.",
    ]


def test_directives_say_the_strongest_first_and_leave_out_what_hardly_weighs():
    conditioner = Conditioner(
        objectives=("plain", "rich"),
        weight_format="directive",
        directives={"plain": "Write simply.", "rich": "Use a learned style."},
    )
    sentences = [conditioner.instruction([w, 1 - w]) for w in (1.0, 0.97, 0.5, 0.25)]
    assert sentences == [
        "100%: Write simply.",
        "97%: Write simply.",
        "50%: Write simply. 50%: Use a learned style.",
        "75%: Use a learned style. 25%: Write simply.",
    ]


@given(simplex(3))
def test_written_numbers_sum_to_exactly_one(weights):
    conditioner = Conditioner(objectives=("a", "b", "c"), weight_format="percent")
    numbers = [
        int(part.split()[-1].rstrip("%."))
        for part in conditioner.instruction(weights).split(":")[1].split(",")
    ]
    assert sum(numbers) == 100
    assert all(abs(n / 100 - w) <= 0.01 for n, w in zip(numbers, weights, strict=True))


def test_user_templates():
    named = Conditioner(objectives=NAMES, template="H={helpful} S={harmless}")
    assert named.instruction([0.7, 0.3]) == "H=0.70 S=0.30"
    whole = Conditioner(
        objectives=NAMES, weight_format="decimal", template="Mix {{now}}: {weights}"
    )
    assert whole.instruction([0.7, 0.3]) == "Mix {now}: helpful 0.70, harmless 0.30"


@pytest.mark.parametrize("template", ["{helpful} only", "{weights} {typo}", "{weights", "nothing"])
def test_templates_that_cannot_work_are_refused(template):
    with pytest.raises(ConfigError, match="template"):
        Conditioner(objectives=NAMES, template=template)


def test_unknown_formats_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="decimal, percent, unary, verbal, directive"):
        Conditioner(objectives=NAMES, weight_format="verbal+roman")


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


def test_encode_equals_the_chat_template():
    conditioner = Conditioner(objectives=NAMES)
    expected = TOKENIZER.apply_chat_template(
        conditioner.messages("Tell me.", [0.7, 0.3]), add_generation_prompt=True
    )["input_ids"]
    assert list(conditioner.encode(TOKENIZER, "Tell me.", [0.7, 0.3])) == expected


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(CONTROL), st.text(max_size=5), st.just("\ue0000\ue001"))))
def test_no_prompt_can_write_control_tokens(parts):
    text = "".join(parts)
    conditioner = Conditioner(objectives=NAMES)
    ids = conditioner.encode(TOKENIZER, text, [0.7, 0.3])
    control = [i for i in ids if i in TOKENIZER.all_special_ids]
    # system, user and assistant turns: three starts, two ends, whatever the text says
    start, end = TOKENIZER.convert_tokens_to_ids(CONTROL)
    assert control == [start, end, start, end, start]
    frame = conditioner.encode(TOKENIZER, "", [0.7, 0.3])
    body = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    at = len(frame) - len(TOKENIZER(f"{CONTROL[1]}\n{CONTROL[0]}assistant\n")["input_ids"])
    assert list(ids) == [*frame[:at], *body, *frame[at:]]


def test_a_prompt_that_imitates_the_instruction_changes_only_its_own_turn():
    conditioner = Conditioner(objectives=NAMES)
    fake = conditioner.instruction([0.0, 1.0])
    messages = conditioner.messages(fake, [1.0, 0.0])
    assert messages[0]["content"] == conditioner.instruction([1.0, 0.0])
    assert messages[1] == {"role": "user", "content": fake}


@pytest.mark.parametrize("chat_template", [NO_SYSTEM, SILENT_SYSTEM])
def test_templates_without_a_system_role_fold_the_instruction_into_the_first_user_turn(
    chat_template,
):
    tokenizer = make_tokenizer(chat_template)
    conditioner = Conditioner(objectives=NAMES)
    text = tokenizer.decode(conditioner.encode(tokenizer, "Hi", [0.7, 0.3]))
    assert text == f"[user]{conditioner.instruction([0.7, 0.3])}\n\nHi[assistant]"


def test_models_without_a_chat_template_get_the_plain_format():
    tokenizer = make_tokenizer(None)
    conditioner = Conditioner(objectives=NAMES)
    text = tokenizer.decode(conditioner.encode(tokenizer, "Hi", [0.7, 0.3]))
    assert text == f"{conditioner.instruction([0.7, 0.3])}\n\nHuman: Hi\n\nAssistant:"
    dialog = [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
    ]
    text = tokenizer.decode(conditioner.encode(tokenizer, dialog, None))
    assert text == "Human: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"


def test_parse_weights():
    assert parse_weights("harmless=0.3, helpful=0.7", NAMES) == pytest.approx((0.7, 0.3))
    assert parse_weights("harmless=1", NAMES) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("helpful", "NAME=VALUE"),
        ("helpful=x", "NAME=VALUE"),
        ("helpfull=1", "Did you mean 'helpful'"),
        ("helpful=-1,harmless=2", "at least 0"),
        ("helpful=nan", "finite"),
        ("helpful=0,harmless=0", "All weights are 0"),
        ("helpful=0.5,helpful=0.5", "twice"),
        ("", "All weights are 0"),
    ],
)
def test_weights_that_cannot_be_read(text, message):
    with pytest.raises(WeightsError, match=message):
        parse_weights(text, NAMES)


def test_weights_are_normalized_with_a_warning_only_when_clearly_off():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert validate_weights([0.7, 0.3004], NAMES) == pytest.approx((0.69972, 0.30028), abs=1e-4)
    with pytest.warns(UserWarning, match="sum to 4"):
        assert validate_weights({"helpful": 1, "harmless": 3}, NAMES) == (0.25, 0.75)
    with pytest.raises(WeightsError, match="3 entries but there are 2"):
        validate_weights([1, 0, 0], NAMES)
    with pytest.raises(WeightsError, match="3 entries"):
        Conditioner(objectives=NAMES).instruction([1, 0, 0])
