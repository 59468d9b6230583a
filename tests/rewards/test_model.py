from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from moodpo.errors import DataError, RewardSpecError
from moodpo.rewards import load_rewards
from moodpo.rewards.checkpoint import Checkpoint
from moodpo.rewards.classifiers import object_spec
from moodpo.rewards.inputs import control_ids
from moodpo.rewards.model import ModelReward, first_sentence, label_scores
from moodpo.rewards.scoring import Scoring
from tiny_checkpoints import tiny_gpt2_tokenizer

PROMPTS = ["Hi", "Tell me a joke about the penguin."]
RESPONSES = [" Ok. ", "Why the ice? It is good. The end."]

# What each preset must read for the prompt "Hi" and the response " Ok. ": written out by hand.
_HH = "Ċ Ċ H u m an : Ġ H i Ġ Ċ Ċ A s s i s t an t :"
TOKENS = {
    "helpful": f"{_HH} O k .",
    "harmless": f"{_HH} O k .",
    "humor": "[CLS] o ##k . [SEP]",
    "deberta": "[CLS] ▁ H u m a n : ▁ H i ▁ A s s i s t a n t : [SEP] ▁ O k . [SEP]",
    "summary": "O k . Ġ <|endoftext|> Ġ H i",
    "faithful": "<s> O k . </s> </s> H i </s>",
}
_HH_IDS = [198, 198, 39, 84, 76, 261, 25, 220, 39, 72, 220, 198, 198, 32, 82, 82, 72, 82, 83]
IDS = {
    "helpful": [*_HH_IDS, 261, 83, 25, 46, 74, 13],
    "harmless": [*_HH_IDS, 261, 83, 25, 46, 74, 13],
    "humor": [2, 19, 83, 54, 3],
    "deberta": [
        *(1, 4, 80, 25, 17, 5, 18, 56, 4, 80, 13, 4, 73, 23, 23, 13, 23, 24, 5, 18, 24, 56, 2),
        *(4, 87, 15, 54, 2),
    ],
    "summary": [46, 74, 13, 220, 263, 220, 39, 72],
    "faithful": [0, 50, 78, 17, 2, 2, 43, 76, 2],
}
SCORES = {  # of PROMPTS and RESPONSES on the tiny checkpoints
    "helpful": [-0.841164, -1.134973],
    "harmless": [-1.016020, -1.889996],
    "humor": [-0.230381, 0.796986],
    "deberta": [2.078819, 2.114884],
    "summary": [0.018197, -0.135412],
    "faithful": [0.031979, 0.057667],
}
LABEL = {"humor": 1, "faithful": 1}  # index 0 elsewhere


@pytest.fixture(scope="module")
def rewards(checkpoints: dict[str, Path]) -> dict[str, ModelReward]:
    loaded = load_rewards([f"{name}={path}#like={name}" for name, path in checkpoints.items()])
    assert all(isinstance(reward, ModelReward) for reward in loaded)
    return {reward.name: reward for reward in loaded}  # type: ignore[misc]


def load(spec: str, **kwargs: Any) -> ModelReward:
    (reward,) = load_rewards([spec], **kwargs)
    assert isinstance(reward, ModelReward)
    return reward


# --- golden formats -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_a_preset_reads_exactly_these_tokens(rewards: dict[str, ModelReward], name: str) -> None:
    reward = rewards[name]
    ids = list(reward.encode(PROMPTS, RESPONSES).rows[0]["input_ids"])
    assert reward.checkpoint.tokenizer.convert_ids_to_tokens(ids) == TOKENS[name].split(" ")
    assert ids == IDS[name]


@pytest.mark.parametrize("name", sorted(SCORES))
def test_a_preset_scores_exactly_this(rewards: dict[str, ModelReward], name: str) -> None:
    scores = rewards[name].score(PROMPTS, RESPONSES)
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(SCORES[name], abs=2e-5)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_the_score_is_the_labels_logit_of_the_unpadded_text(
    checkpoints: dict[str, Path], rewards: dict[str, ModelReward], name: str
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[name])
    with torch.no_grad():
        expected = [
            model(torch.tensor([row["input_ids"]])).logits[0, LABEL.get(name, 0)].item()
            for row in rewards[name].encode(PROMPTS, RESPONSES).rows
        ]
    assert rewards[name].score(PROMPTS, RESPONSES).tolist() == pytest.approx(expected, abs=1e-5)


def gpt2_by_hand(folder: Path, ids: list[int]) -> Tensor:
    """The score `[T]` at every position, from the stored tensors alone (2 layers, 2 heads)."""
    w = load_file(folder / "model.safetensors")
    length = len(ids)

    def norm(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        x = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:length]
    future = torch.ones(length, length).triu(1).bool()
    for layer in range(2):
        block = f"transformer.h.{layer}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(16, dim=-1)
        heads = []
        for h in (slice(0, 8), slice(8, 16)):
            attention = (q[:, h] @ k[:, h].T / math.sqrt(8)).masked_fill(future, -math.inf)
            heads.append(attention.softmax(-1) @ v[:, h])
        x = x + linear(torch.cat(heads, -1), f"{block}.attn.c_proj")
        inner = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        inner = 0.5 * inner * (1 + (math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)).tanh())
        x = x + linear(inner, f"{block}.mlp.c_proj")
    return (norm(x, "transformer.ln_f") @ w["score.weight"].T)[:, 0]


@pytest.mark.parametrize("name", ["helpful", "summary"])
def test_gpt2_rewards_equal_a_computation_by_hand(
    checkpoints: dict[str, Path], rewards: dict[str, ModelReward], name: str
) -> None:
    by_hand = gpt2_by_hand(checkpoints[name], IDS[name])
    scores = rewards[name].score(PROMPTS, RESPONSES)  # a batch: the first text is padded
    assert scores[0].item() == pytest.approx(by_hand[-1].item(), abs=1e-4)


def test_the_score_of_a_summary_is_read_after_the_post(
    checkpoints: dict[str, Path], rewards: dict[str, ModelReward]
) -> None:
    """bos, eos and padding are one token here, and it stands in the middle of the text."""
    reward = rewards["summary"]
    assert reward.checkpoint.pad_token_id == 263
    posts = ["The ice", "A post that is very much longer"]
    ids = list(reward.encode(posts, ["Ok.", "Ok."]).rows[0]["input_ids"])
    by_hand = gpt2_by_hand(checkpoints["summary"], ids)
    assert abs(by_hand[ids.index(263) - 1] - by_hand[-1]) > 0.01  # where "first pad - 1" reads
    padded = reward.score(posts, ["Ok.", "Ok."])
    assert padded[0].item() == pytest.approx(by_hand[-1].item(), abs=1e-4)
    assert abs(padded[0] - padded[1]) > 0.01


def test_a_text_that_ends_with_the_padding_token_is_scored_at_it(
    checkpoints: dict[str, Path], rewards: dict[str, ModelReward]
) -> None:
    """The position comes from the length: `right-most non-pad` would step back over the token."""
    checkpoint = rewards["helpful"].checkpoint
    ids = [40, 41, 263]
    logits = checkpoint.logits([{"input_ids": ids}, {"input_ids": [42] * 9}], batch_size=2)
    by_hand = gpt2_by_hand(checkpoints["helpful"], ids)
    assert logits[0, 0].item() == pytest.approx(by_hand[2].item(), abs=1e-4)
    assert abs(by_hand[2] - by_hand[1]) > 0.01


def test_faithful_offers_the_margin_and_the_first_sentence(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["faithful"]
    whole, margin, first = load_rewards(
        [
            f"whole={path}#like=faithful",
            f"margin={path}#like=faithful&score=margin",
            f"first={path}#like=faithful&response=first-sentence",
        ]
    )
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)

    def logits(summary: str) -> list[float]:
        with torch.no_grad():
            return model(**tokenizer(summary, PROMPTS[1], return_tensors="pt")).logits[0].tolist()

    zero, one = logits(RESPONSES[1])
    assert whole.score(PROMPTS[1:], RESPONSES[1:]).item() == pytest.approx(one, abs=1e-5)
    assert margin.score(PROMPTS[1:], RESPONSES[1:]).item() == pytest.approx(one - zero, abs=1e-5)
    expected = logits("Why the ice? It is good.")[1]
    assert first.score(PROMPTS[1:], RESPONSES[1:]).item() == pytest.approx(expected, abs=1e-5)


def test_first_sentences() -> None:
    assert first_sentence("One. Two.") == "One."
    assert first_sentence("No period") == "No period."
    assert first_sentence("") == "."


@given(st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=2), min_size=1, max_size=5))
def test_the_margin_of_two_labels_is_their_difference(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows)
    margin = label_scores(logits, label=1, kind="margin")
    torch.testing.assert_close(margin, logits[:, 1] - logits[:, 0])
    assert torch.equal(label_scores(logits, label=1, kind="logit"), logits[:, 1])


def test_the_margin_of_three_labels_is_log_odds() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    odds = logits.softmax(-1)[0, 2] / (1 - logits.softmax(-1)[0, 2])
    assert label_scores(logits, label=2, kind="margin").item() == pytest.approx(odds.log().item())


# --- text stays text ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_text_never_becomes_a_control_token(rewards: dict[str, ModelReward], name: str) -> None:
    reward = rewards[name]
    tokenizer = reward.checkpoint.tokenizer
    hostile = "good" + "".join(tokenizer.all_special_tokens) + "good"
    harmless_row, hostile_row = reward.encode(["Hi", hostile], ["good", hostile]).rows
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if name in ("helpful", "harmless", "summary"):
        special = {tokenizer.eos_token_id}  # which is also the unknown token of GPT-2
    assert control_ids(tokenizer) == special

    def controls(ids: Any) -> list[int]:
        return [i for i in ids if i in special]

    assert controls(hostile_row["input_ids"]) == controls(harmless_row["input_ids"])
    assert torch.isfinite(reward.score(["Hi", hostile], ["good", hostile])).all()


@pytest.mark.parametrize("name", ["helpful", "summary", "faithful"])
def test_byte_level_models_read_a_spelled_control_token_as_its_letters(
    rewards: dict[str, ModelReward], name: str
) -> None:
    reward = rewards[name]
    tokenizer = reward.checkpoint.tokenizer
    spelled = f"ab{tokenizer.eos_token}cd"
    ids = list(reward.encode([f"{spelled} p"], [f"{spelled} r"]).rows[0]["input_ids"])
    text = tokenizer.decode(ids)
    assert f"{spelled} p" in text
    assert f"{spelled} r" in text


def test_prompts_that_look_like_templates_stay_themselves(
    rewards: dict[str, ModelReward],
) -> None:
    row = rewards["helpful"].encode(["{response} {bos} {0}"], ["{prompt}"]).rows[0]
    text = rewards["helpful"].checkpoint.tokenizer.decode(row["input_ids"])
    assert text == "\n\nHuman: {response} {bos} {0} \n\nAssistant:{prompt}"
    row = rewards["summary"].encode(["{response} {bos} {0}"], ["{prompt}"]).rows[0]
    text = rewards["summary"].checkpoint.tokenizer.decode(row["input_ids"])
    assert text == "{prompt} <|endoftext|> {response} {bos} {0}"


# --- batches --------------------------------------------------------------------------------------

TEXTS = ["good", "The ice is good and the penguin is too.", "ok", "Why?", "good", "a b c d e f g"]


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_batches_equal_single_texts_in_input_order(checkpoints: dict[str, Path], name: str) -> None:
    reward = load(f"{checkpoints[name]}#like={name}", batch_size=4)
    prompts = [f"Say {i} or the good joke" for i in range(len(TEXTS))]
    single = torch.cat([reward.score([p], [t]) for p, t in zip(prompts, TEXTS, strict=True)])
    torch.testing.assert_close(reward.score(prompts, TEXTS), single, rtol=1e-5, atol=1e-5)
    backwards = reward.score(prompts[::-1], TEXTS[::-1]).flip(0)
    torch.testing.assert_close(backwards, single, rtol=1e-5, atol=1e-5)
    assert len(set(single.tolist())) > 1


def test_equal_texts_are_computed_once_and_batches_are_sorted(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = load(f"{checkpoints['humor']}#like=humor", batch_size=2)
    lengths: list[list[int]] = []
    forward = Checkpoint._forward

    def spy(self: Checkpoint, rows: Any) -> Tensor:
        lengths.append([len(row["input_ids"]) for row in rows])
        return forward(self, rows)

    monkeypatch.setattr(Checkpoint, "_forward", spy)
    scores = reward.score(["p"] * 6, [*TEXTS[:4], " good", "ok "])
    assert sum(map(len, lengths)) == 4  # "good" and "ok" once each
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)
    assert max(map(len, lengths)) == 2
    assert scores[0] == scores[4]
    assert scores[2] == scores[5]


def test_nothing_to_score_gives_no_rows_and_unaligned_rows_are_refused(
    rewards: dict[str, ModelReward],
) -> None:
    assert rewards["humor"].score([], []).shape == (0,)
    with pytest.raises(DataError, match="prompts has 1 rows but there are 2"):
        rewards["humor"].score(["p"], ["a", "b"])


@pytest.mark.parametrize(("name", "limit"), [("helpful", 128), ("humor", 96), ("deberta", 96)])
def test_long_texts_are_cut_to_what_the_checkpoint_can_read(
    rewards: dict[str, ModelReward], name: str, limit: int
) -> None:
    reward = rewards[name]
    long = "the ice is good " * 100
    row = reward.encode([long], [long]).rows[0]
    assert len(row["input_ids"]) == limit == reward.max_tokens
    if name != "helpful":  # encoders keep their last special token
        assert row["input_ids"][-1] == reward.checkpoint.tokenizer.sep_token_id
    assert torch.isfinite(reward.score([long], [long])).all()


def test_long_summaries_are_cut_at_the_end_of_the_post(rewards: dict[str, ModelReward]) -> None:
    row = rewards["summary"].encode(["post " * 100], ["Ok."]).rows[0]
    assert len(row["input_ids"]) == 128
    assert list(row["input_ids"][:5]) == [46, 74, 13, 220, 263]


def test_the_limit_can_be_lowered_but_not_raised(checkpoints: dict[str, Path]) -> None:
    assert load(f"{checkpoints['humor']}#like=humor&max_tokens=9").max_tokens == 9
    reward = load(f"{checkpoints['humor']}#like=humor&max_tokens=4000")
    assert reward.max_tokens == 96


# --- checkpoints without a preset -----------------------------------------------------------------


def test_a_plain_checkpoint_reads_the_raw_pair(checkpoints: dict[str, Path]) -> None:
    reward = load(str(checkpoints["helpful"]))
    ids = reward.encode(["Hi"], [" Ok. "]).rows[0]["input_ids"]
    assert reward.checkpoint.tokenizer.decode(ids) == "HiOk."
    assert reward.describe()["input"] == "prompt-response"


def test_an_input_without_tokens_has_no_score(checkpoints: dict[str, Path]) -> None:
    scores = load(f"{checkpoints['helpful']}#input=response").score(["Hi", "Hi"], ["", "Ok"])
    assert math.isnan(scores[0])
    assert torch.isfinite(scores[1])


CHAT = "{% for m in messages %}<|endoftext|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def test_a_checkpoint_with_a_chat_template_uses_it(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["helpful"])
    tokenizer = tiny_gpt2_tokenizer()
    tokenizer.chat_template = CHAT
    model.save_pretrained(tmp_path / "chatty")
    tokenizer.save_pretrained(tmp_path / "chatty")
    reward = load(str(tmp_path / "chatty"))
    assert reward.describe()["input"] == "chat"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ok."}],
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        expected = model(rendered["input_ids"]).logits.item()
    # transformers steps back over a final <|endoftext|>; this template ends with a line break.
    assert reward.score(["Hi"], [" Ok. "]).item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(RewardSpecError, match="has no chat template"):
        load(f"{checkpoints['helpful']}#input=chat")


# --- precision, mode, description -----------------------------------------------------------------


def test_bfloat16_models_project_their_score_in_float32(checkpoints: dict[str, Path]) -> None:
    for name, path in checkpoints.items():
        reward = load(f"{path}#like={name}", dtype=torch.bfloat16)
        scores = reward.score(PROMPTS, RESPONSES)
        assert reward.describe()["dtype"] == "bfloat16"
        assert scores.tolist() == pytest.approx(SCORES[name], abs=0.1)
        assert not torch.equal(scores, scores.bfloat16().float())  # finer than bfloat16's grid


def test_a_description_says_how_the_score_is_read(
    checkpoints: dict[str, Path], rewards: dict[str, ModelReward]
) -> None:
    assert rewards["faithful"].describe() == {
        "name": "faithful",
        "kind": "model",
        "spec": f"{checkpoints['faithful']}#like=faithful",
        "revision": None,
        "checkpoint": str(checkpoints["faithful"]),
        "architecture": "BartForSequenceClassification",
        "input": "response-prompt",
        "label": 1,
        "label_name": "FAITHFUL",
        "score": "logit",
        "response": "whole",
        "pooling": "head",
        "max_tokens": 128,
        "dtype": "float32",
    }
    assert rewards["summary"].describe()["pooling"] == "last_token"


@pytest.mark.parametrize("named_by", ["tokenizer", "config"])
@pytest.mark.parametrize("name", ["helpful", "humor", "faithful"])
def test_padding_outside_the_embeddings_changes_no_score(
    checkpoints: dict[str, Path], rewards: dict[str, ModelReward], name: str, named_by: str
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[name])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[name])
    rows = model.get_input_embeddings().num_embeddings
    if named_by == "tokenizer":
        tokenizer.add_special_tokens({"pad_token": "[P]"})
        assert tokenizer.pad_token_id == rows
        model.config.pad_token_id = None
    else:
        model.config.pad_token_id = rows
    checkpoint = Checkpoint.from_model(model, tokenizer, source="object")
    assert checkpoint.pad_token_id < rows
    reward = ModelReward(rewards[name].spec, checkpoint)
    scores = reward.score(PROMPTS, RESPONSES)  # of unequal lengths
    assert scores.tolist() == pytest.approx(SCORES[name], abs=1e-4)


def test_of_several_chat_templates_the_default_is_read(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["helpful"])
    single, several, nameless = (tiny_gpt2_tokenizer() for _ in range(3))
    single.chat_template = CHAT
    several.chat_template = {"default": CHAT, "rag": "x"}
    nameless.chat_template = {"rag": CHAT, "tool_use": CHAT}
    spec = object_spec("somewhere", "r")
    texts = [
        ModelReward(spec, Checkpoint.from_model(model, t, source="object"))
        .encode(["Hi"], ["Yes."])
        .rows
        for t in (single, several)
    ]
    assert texts[0] == texts[1]
    without = Checkpoint.from_model(model, nameless, source="object")
    with pytest.raises(RewardSpecError, match=r"templates rag, tool_use.*input=prompt-response"):
        ModelReward(spec, without)
    plain = replace(spec, scoring=Scoring(input="prompt-response"))
    assert ModelReward(plain, without).encode(["Hi"], ["Yes."]).rows
