from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny_rewards
from moodpo.errors import RewardError, RewardSpecError
from moodpo.rewards import (
    FunctionReward,
    LexicalReward,
    ModelReward,
    RewardPanel,
    ScoreCache,
    ScoreIdentity,
    load_rewards,
)
from moodpo.rewards.base import RewardRowError, as_scores
from moodpo.rewards.cache import first_unknown, row_keys, score_identity
from moodpo.rewards.checkpoint import Checkpoint
from moodpo.rewards.lexical import LEXICAL
from tiny_checkpoints import build_tiny_gpt2_reward, tiny_gpt2_tokenizer

PROMPTS = ["Hi", "Hi", "Tell me a joke.", "Hi"]
TEXTS = ["good", "the ice", "good", "good"]  # rows 0 and 3 are equal
MORE_PROMPTS = ["Tell me a joke.", "Hi", "New"]
MORE_TEXTS = ["good", "the ice", "good"]  # two known rows and a new one


class Counting:
    """A reward that writes down what it was asked about."""

    def __init__(self, identity: Any = None, answers: Mapping[str, float] | None = None) -> None:
        self.name = "counting"
        self.answers = answers or {}
        self.asked: list[list[str]] = []
        if identity is not None:
            self.score_identity = identity

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Tensor:
        self.asked.append(list(completions))
        values = [self.answers.get(text, float(len(text))) for text in completions]
        return as_scores(self.name, values, count=len(completions))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "kind": "counting", "spec": None}


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every forward pass of a reward model."""
    rows_seen: list[int] = []
    forward = Checkpoint._forward

    def spy(self: Checkpoint, rows: Any) -> Tensor:
        rows_seen.append(len(rows))
        return forward(self, rows)

    monkeypatch.setattr(Checkpoint, "_forward", spy)
    return rows_seen


# --- the store ------------------------------------------------------------------------------------


def test_the_score_asked_for_longest_ago_is_forgotten_first() -> None:
    cache = ScoreCache(2)
    cache.keep({b"a": 1.0, b"b": 2.0})
    assert cache.find([b"a", b"x"]) == {b"a": 1.0}
    cache.keep({b"c": 3.0})
    assert cache.find([b"a", b"b", b"c"]) == {b"a": 1.0, b"c": 3.0}
    cache.clear()
    assert len(cache) == 0


def test_a_missing_score_is_not_remembered_and_zero_entries_hold_nothing() -> None:
    cache = ScoreCache(2)
    cache.keep({b"a": math.nan, b"b": 0.0})
    assert cache.find([b"a", b"b"]) == {b"b": 0.0}
    none = ScoreCache(0)
    none.keep({b"a": 1.0})
    assert len(none) == 0
    with pytest.raises(RewardSpecError, match="cannot hold -1 scores"):
        ScoreCache(-1)


@given(st.integers(0, 4), st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=12))
def test_the_store_is_a_plain_least_recently_used_list(size: int, calls: list[list[int]]) -> None:
    cache, plain = ScoreCache(size), OrderedDict[int, float]()
    for call in calls:
        names = list(dict.fromkeys(call))
        known = cache.find([bytes([n]) for n in names])
        assert known == {bytes([n]): plain[n] for n in names if n in plain}
        for n in [n for n in names if n in plain] + [n for n in names if n not in plain]:
            plain[n] = float(n)
            plain.move_to_end(n)
        cache.keep({bytes([n]): float(n) for n in names if bytes([n]) not in known})
        while len(plain) > size:
            plain.popitem(last=False)
        assert len(cache) == len(plain)


def test_first_unknown_rows_by_hand() -> None:
    assert first_unknown([b"a", b"b", b"a", b"c", b"c"], {b"b": 1.0}) == [0, 3]
    assert first_unknown([], {}) == []


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_tells_apart_everything_that_a_score_may_depend_on() -> None:
    turns = [{"role": "user", "content": "a"}]
    rows = [("a", "b"), ("ab", ""), ("", "ab"), ("a", "b "), (turns, "b"), (str(turns), "b")]
    rows += [("a\ud800", "b"), ("a\\ud800", "b")]  # half a character, as broken text has it
    keys = [row_keys(ScoreIdentity("s"), [p], [c], None) for p, c in rows]
    keys += [row_keys(ScoreIdentity("t"), ["a"], ["b"], None)]
    assert len({key for found in keys for key in found or ()}) == len(rows) + 1
    assert all(found and len(found[0]) == 16 for found in keys)
    again = [{"content": "a", "role": "user"}]
    assert row_keys(ScoreIdentity("s"), [again], ["b"], None) == keys[4]


def test_only_columns_that_are_read_belong_to_the_key() -> None:
    def key(columns: frozenset[str] | None, **values: Any) -> list[bytes] | None:
        return row_keys(
            ScoreIdentity("s", columns), ["p"], ["c"], {k: [v] for k, v in values.items()}
        )

    assert key(frozenset(), x=1) == key(frozenset()) == key(frozenset({"x"}), y=1)
    assert key(frozenset({"x"}), x=1, y=1) == key(frozenset({"x"}), x=1, y=2)
    distinct = [key(None, x=1), key(None, x=2), key(None, x=1, y=1), key(None), key(None, y=1)]
    assert len({found[0] for found in distinct if found}) == 5
    assert key(None, x=object()) is None
    assert row_keys(ScoreIdentity("s"), ["p", 3], ["c", "c"], None) is None  # type: ignore[list-item]


# --- a panel asks once ----------------------------------------------------------------------------


def test_equal_rows_and_known_rows_are_not_asked_about_again() -> None:
    reward = Counting(ScoreIdentity("counting"))
    panel = RewardPanel([reward])
    assert panel.score(PROMPTS, TEXTS)[:, 0].tolist() == [4, 7, 4, 4]
    assert panel.score(MORE_PROMPTS, MORE_TEXTS)[:, 0].tolist() == [4, 7, 4]
    assert panel.score(PROMPTS, TEXTS)[:, 0].tolist() == [4, 7, 4, 4]
    assert reward.asked == [["good", "the ice", "good"], ["good"]]
    assert (panel.cache.hits, panel.cache.misses) == (1 + 2 + 4, 3 + 1)
    assert panel.cache.pop_counts() == (7, 4)
    assert panel.cache.pop_counts() == (0, 0)
    assert panel.score([], []).shape == (0, 1)


def test_without_entries_only_equal_rows_of_a_batch_are_scored_once() -> None:
    reward = Counting(ScoreIdentity("counting"))
    panel = RewardPanel([reward], cache=ScoreCache(0))
    for _ in range(2):
        assert panel.score(PROMPTS, TEXTS)[:, 0].tolist() == [4, 7, 4, 4]
    assert reward.asked == [["good", "the ice", "good"]] * 2


@pytest.mark.parametrize("identity", [None, "counting", True])
def test_a_reward_that_promises_nothing_is_asked_about_everything(identity: Any) -> None:
    reward = Counting(identity)
    panel = RewardPanel([reward])
    panel.score(PROMPTS, TEXTS)
    panel.score(PROMPTS, TEXTS)
    assert reward.asked == [TEXTS, TEXTS]
    assert (panel.cache.hits, panel.cache.misses, len(panel.cache)) == (0, 0, 0)


def test_rows_that_no_key_can_tell_apart_are_always_asked_about() -> None:
    reward = Counting(ScoreIdentity("counting", None))
    panel = RewardPanel([reward])
    for _ in range(2):
        panel.score(["p", "p"], ["a", "a"], {"x": [object(), object()]})
    assert reward.asked == [["a", "a"], ["a", "a"]]


def test_a_missing_score_is_asked_for_again() -> None:
    reward = Counting(ScoreIdentity("counting"), {"bad": math.nan})
    panel = RewardPanel([reward])
    for _ in range(2):
        scores = panel.score(["p", "p", "p"], ["bad", "ok", "bad"])[:, 0]
        assert scores.isnan().tolist() == [True, False, True]
    assert reward.asked == [["bad", "ok"], ["bad"]]


def test_an_error_numbers_the_rows_that_the_caller_passed() -> None:
    reward = Counting(ScoreIdentity("counting"), {"bad": math.inf})
    panel = RewardPanel([reward])
    panel.score(["p"], ["ok"])
    with pytest.raises(RewardError, match="'counting' answered inf for row 2") as info:
        panel.score(["p"] * 3, ["ok", "ok", "bad"])
    assert isinstance(info.value, RewardRowError)
    assert reward.asked == [["ok"], ["bad"]]  # nothing is asked again to name the row
    assert len(panel.cache) == 1


def test_whoever_asks_again_asks_about_the_failed_rows_alone() -> None:
    class Recovering(Counting):
        """Fails about one row once, then as a whole once."""

        def score(self, prompts: Any, completions: Any, columns: Any = None) -> Tensor:
            if len(self.asked) == 1:
                self.answers = {}
                self.asked.append(list(completions))
                raise RuntimeError("busy")
            return super().score(prompts, completions, columns)

    first = Counting(ScoreIdentity("first"))
    first.name = "first"
    reward = Recovering(ScoreIdentity("recovering"), {"bad": math.inf})
    panel = RewardPanel([first, reward])
    asked = ["p"] * 5, ["a", "abc", "bad", "ab", "abc"]
    with pytest.raises(RewardError, match="'counting' answered inf for row 2"):
        panel.score(*asked)
    assert reward.asked == [["a", "abc", "bad", "ab"]]
    with pytest.raises(RewardError, match="failed while scoring: RuntimeError: busy"):
        panel.score(*asked)
    assert panel.score(*asked)[:, 1].tolist() == [1, 3, 3, 2, 3]
    assert reward.asked[1:] == [["bad"], ["bad"]]
    assert first.asked == [["a", "abc", "bad", "ab"]]  # the failure of another loses nothing


@pytest.mark.parametrize("answer", ["no", math.inf, [1.0]])
def test_a_function_whose_answer_is_odd_loses_that_row_alone(answer: Any) -> None:
    asked = []

    def judge(completions: list[str]) -> list[Any]:
        asked.append(completions)
        return [answer if text == "bad" and len(asked) < 3 else 1.0 for text in completions]

    panel = RewardPanel([FunctionReward(judge, name="judge", deterministic=True)])
    for _ in range(2):
        with pytest.raises(RewardError, match=r"'judge' answered .* for row 1[ ,.]"):
            panel.score(["p"] * 3, ["a", "bad", "c"])
    assert panel.score(["p"] * 3, ["a", "bad", "c"])[:, 0].tolist() == [1, 1, 1]
    assert asked == [["a", "bad", "c"], ["bad"], ["bad"]]


texts = st.lists(st.tuples(st.sampled_from("pq"), st.text("ab", max_size=2)), max_size=6)


@given(st.lists(texts, max_size=4), st.integers(0, 3))
def test_scores_are_the_same_whatever_is_remembered(
    calls: list[list[tuple[str, str]]], size: int
) -> None:
    remembering = RewardPanel([Counting(ScoreIdentity("counting"))], cache=ScoreCache(size))
    forgetful = RewardPanel([Counting()])
    for rows in calls:
        asked = [prompt for prompt, _ in rows], [completion for _, completion in rows]
        assert torch.equal(remembering.score(*asked), forgetful.score(*asked))


# --- which rewards promise ------------------------------------------------------------------------


def test_lexical_scores_are_remembered_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = load_rewards(list(LEXICAL))
    remembering = RewardPanel(rewards)
    without = torch.stack([r.score(PROMPTS, TEXTS) for r in rewards], dim=-1)
    assert torch.equal(remembering.score(PROMPTS, TEXTS), without)
    monkeypatch.setattr(LexicalReward, "score", None)
    assert torch.equal(remembering.score(PROMPTS, TEXTS), without)
    assert remembering.cache.hits == len(rewards) * (1 + 4)


def test_two_names_of_one_lexical_scorer_share_their_scores() -> None:
    panel = RewardPanel(load_rewards(["brevity", "short=brevity"]))
    scores = panel.score(["p"], ["A short text."])
    assert scores[0, 0] == scores[0, 1]
    assert panel.cache.pop_counts() == (1, 1)


def test_scorers_and_subclasses_of_somebody_else_promise_nothing() -> None:
    class Noisy(LexicalReward):
        pass

    own = replace(LEXICAL["brevity"], function=lambda p, c: 0.0)
    assert LexicalReward(LEXICAL["brevity"]).score_identity is not None
    assert LexicalReward(own).score_identity is None
    assert Noisy(LEXICAL["brevity"]).score_identity is None


def test_functions_are_remembered_only_when_they_say_so() -> None:
    calls = itertools.count()

    def plain(completions: list[str]) -> list[float]:
        next(calls)
        return [float(len(text)) for text in completions]

    def marked(completions: list[str], bonus: list[float]) -> list[float]:
        next(calls)
        return [len(c) + b for c, b in zip(completions, bonus, strict=True)]

    marked.deterministic = True  # type: ignore[attr-defined]
    columns = {"bonus": [0.0, 1.0, 2.0, 0.0], "other": [object()] * 4}
    panel = RewardPanel(load_rewards([plain, marked]))
    for _ in range(2):
        scores = panel.score(PROMPTS, TEXTS, columns)
        assert scores[:, 1].tolist() == [4, 8, 6, 4]
    assert next(calls) == 2 + 1
    assert panel.cache.pop_counts() == (1 + 4, 3)
    panel.score(PROMPTS, TEXTS, {**columns, "bonus": [5.0] * 4})
    assert panel.cache.pop_counts() == (1, 3)
    with pytest.raises(RewardError, match="'marked' needs bonus"):
        panel.score(PROMPTS, TEXTS)


def test_a_function_can_be_declared_deterministic_and_objects_are_told_apart() -> None:
    assert score_identity(FunctionReward(tiny_rewards.letters, name="letters")) is None
    first, second = (
        FunctionReward(tiny_rewards.letters, name="letters", deterministic=True) for _ in range(2)
    )
    assert first.score_identity != second.score_identity
    assert first.score_identity == first.score_identity
    assert first.score_identity.columns is None  # type: ignore[union-attr]
    variety = FunctionReward(lambda completions: [1.0], name="one", deterministic=True)
    assert variety.score_identity.columns == {"completions"}  # type: ignore[union-attr]


# --- models ---------------------------------------------------------------------------------------


def test_a_known_text_takes_no_forward_pass(
    checkpoints: dict[str, Path], forwards: list[int]
) -> None:
    specs = [f"{name}={checkpoints[name]}#like={name}" for name in ("helpful", "humor", "faithful")]
    rewards = load_rewards(specs)
    without = torch.stack([r.score(PROMPTS, TEXTS) for r in rewards], dim=-1)
    panel = RewardPanel(rewards)
    forwards.clear()
    assert torch.equal(panel.score(PROMPTS, TEXTS), without)
    assert forwards == [3, 2, 3]  # the response alone is what humor reads
    assert torch.equal(panel.score(PROMPTS[::-1], TEXTS[::-1]), without.flip(0))
    assert forwards == [3, 2, 3]
    more = panel.score(MORE_PROMPTS, MORE_TEXTS)
    assert forwards == [3, 2, 3, 1, 1, 1]
    alone = torch.stack([r.score(MORE_PROMPTS, MORE_TEXTS) for r in rewards], dim=-1)
    torch.testing.assert_close(more, alone, rtol=1e-5, atol=1e-5)
    panel.cache.clear()
    assert torch.equal(panel.score(MORE_PROMPTS, MORE_TEXTS), alone)


def test_a_models_identity_is_all_that_changes_its_score(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["faithful"]
    options = ["", "&label=0", "&score=margin", "&response=first-sentence", "&input=response"]
    options += ["&max_tokens=9", ""]
    rewards = load_rewards([f"r{i}={path}#like=faithful{o}" for i, o in enumerate(options)])
    identities = [score_identity(reward) for reward in rewards]
    assert None not in identities
    assert len(set(identities)) == len(options) - 1
    assert identities[0] == identities[-1]  # another name for the same score
    (again,) = load_rewards([f"{path}#like=faithful"])
    assert score_identity(again) != identities[0]  # the folder may have been written since
    assert isinstance(again, ModelReward)
    before = again.score_identity
    again.max_tokens = 7
    assert again.score_identity != before


def test_a_model_that_its_owner_may_train_on_is_asked_every_time(
    checkpoints: dict[str, Path], forwards: list[int]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["humor"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["humor"])
    panel = RewardPanel(
        load_rewards([model], names=["joke#label=1"], processing_classes=[tokenizer])
    )
    before = panel.score(["Hi"], ["Ok."])
    model.classifier.bias.data[1] += 1
    torch.testing.assert_close(panel.score(["Hi"], ["Ok."]), before + 1)
    assert forwards == [1, 1]


def test_a_subclass_or_a_template_with_todays_date_promises_nothing(tmp_path: Path) -> None:
    class Shifted(ModelReward):
        def score(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().score(*args, **kwargs) + 1

    path = build_tiny_gpt2_reward(tmp_path / "chat")
    tokenizer = tiny_gpt2_tokenizer()
    tokenizer.chat_template = (
        "{{ strftime_now('%d') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(path)
    dated, plain = load_rewards([f"dated={path}", f"plain={path}#input=prompt-response"])
    assert isinstance(plain, ModelReward)
    assert score_identity(dated) is None
    assert score_identity(plain) is not None
    shifted = Shifted(plain.spec, plain.checkpoint)
    assert score_identity(shifted) is None
    scores = RewardPanel([plain, _named(shifted, "shifted")]).score(["Hi"], ["Ok."])
    assert scores[0, 1] == scores[0, 0] + 1


def _named(reward: ModelReward, name: str) -> ModelReward:
    reward.name = name
    return reward
