import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moodpo.conditioning.instruction import Conditioner
from moodpo.conditioning.tokens import encode_conversation
from moodpo.errors import DataError

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


def test_a_conversation_that_the_template_refuses_is_said_with_its_turns():
    refusing = make_tokenizer("{{ raise_exception('turns must alternate.') }}")
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(DataError, match=r"turns must alternate\. Change its turns \(user, user\)"):
        encode_conversation(refusing, turns)
