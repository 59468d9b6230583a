from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import trl.rewards

from moodpo.errors import DataError, RewardError, RewardSpecError
from moodpo.rewards import check_columns, load_rewards
from moodpo.rewards.function import FunctionReward, import_function

CONVERSATION = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "reply"},
    {"role": "user", "content": "last"},
]


def shout(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    return [None if not text else float(text.count("!")) for text in completions]


def test_trls_signature_gets_everything_as_trl_passes_it() -> None:
    seen: dict[str, Any] = {}

    def spy(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0] * len(completions)

    columns = {"answer": [7, 8], "completion_ids": [(1,), (2,)]}
    FunctionReward(spy, name="spy").score(["raw", CONVERSATION], ["x", "y"], columns)
    message = {"role": "assistant", "content": "y"}
    assert seen == {"prompts": ["raw", CONVERSATION], "completions": ["x", [message]], **columns}


def test_a_function_gets_only_what_it_asks_for() -> None:
    def match(completions: list[str], answer: list[str], note: str = "none") -> list[bool]:
        assert note == "none"
        return [c == a for c, a in zip(completions, answer, strict=True)]

    reward = FunctionReward(match, name="match")
    columns = {"answer": ["4", "5"], "completion_ids": [(1,), (2,)]}
    assert reward.score(["2+2", "2+3"], ["4", "6"], columns).tolist() == [1.0, 0.0]


def test_none_is_no_score() -> None:
    scores = FunctionReward(shout, name="shout").score(["a"] * 3, ["hey!!", "", "no"])
    assert scores[0] == 2
    assert math.isnan(scores[1])
    assert scores[2] == 0


def test_a_missing_column_is_named_with_those_there_are() -> None:
    def match(completions: list[str], answer: list[str]) -> list[float]:
        raise AssertionError

    reward = FunctionReward(match, name="match")
    with pytest.raises(RewardError, match=r"'match' needs answer, .* the columns id\. Add"):
        reward.score(["p"], ["c"], {"id": [1]})


THINKS, BLURTS = "<think>\nIt is four.\n</think>\nFour.", "Four."


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (trl.rewards.think_format_reward, [1.0, 0.0]),
        (trl.rewards.get_soft_overlong_punishment(8, 4), [-0.5, 0.0]),
        (trl.rewards.get_repetition_penalty_reward(ngram_size=1), [-0.5, 0.0]),
    ],
)
def test_trls_own_functions_run_on_conversations(function: Any, expected: list[float]) -> None:
    """Whatever of messages and token ids they ask for, and none knows of moodpo."""
    (reward,) = load_rewards([function])
    check_columns([function], ["completion_ids", "solution"])
    ids = {"completion_ids": [[1, 2, 3, 1, 2, 3], [4, 5]], "solution": ["4", "4"]}
    assert reward.score([CONVERSATION] * 2, [THINKS, BLURTS], ids).tolist() == expected


@pytest.mark.parametrize(
    ("parameter", "columns", "message"),
    [
        ("answer", ["answer", "id"], None),
        ("answer=None", [], None),
        ("answer", ["prompt", "id"], r"but the data have the columns id\. Add the"),
        ("answer", [], r"the columns \(none\)"),
        ("prompts", [], None),
        ("completion_ids", ["completion_ids"], None),
        ("completion_ids", ["id"], "Only texts are known here"),
        ("trainer_state", ["id"], "trainer_state of TRL is not passed here: give it a default"),
        ("log_extra=None", ["id"], None),
        ("**columns", [], None),
    ],
)
def test_columns_are_missed_before_anything_is_scored(
    parameter: str, columns: list[str], message: str | None
) -> None:
    function = eval(f"lambda completions, {parameter}: [0.0] * len(completions)")
    function.__name__ = "judge"
    for reward in (function, FunctionReward(function, name="judge")):
        if message is None:
            check_columns(["brevity", reward], columns)
        else:
            with pytest.raises(RewardSpecError, match=f"'judge' needs .*{message}"):
                check_columns(["brevity", reward], columns)


def test_failures_name_the_reward() -> None:
    def broken(completions: list[str]) -> list[float]:
        return [1 / len(text) for text in completions]

    reward = FunctionReward(broken, name="broken")
    with pytest.raises(RewardError, match="'broken' failed while scoring: ZeroDivisionError"):
        reward.score(["p"], [""])
    with pytest.raises(RewardError, match="'short' answered 1 scores for 2 completions"):
        FunctionReward(lambda completions: [0.0], name="short").score(["p"] * 2, ["a", "b"])
    with pytest.raises(RewardError, match="'big' answered inf for row 0"):
        FunctionReward(lambda completions: [math.inf], name="big").score(["p"], ["a"])
    with pytest.raises(DataError, match="prompts has 1 rows"):
        FunctionReward(shout, name="shout").score(["p"], ["a", "b"])


class Counter:
    def __call__(self, completions: list[str]) -> list[int]:
        return [len(text) for text in completions]

    @staticmethod
    def static(completions: list[str]) -> list[int]:
        return [0 for _ in completions]


def test_objects_partials_and_methods_are_functions_too() -> None:
    def scaled(completions: list[str], factor: float) -> list[float]:
        return [factor * len(text) for text in completions]

    for function, expected in (
        (Counter(), 3.0),
        (Counter.static, 0.0),
        (functools.partial(scaled, factor=2.0), 6.0),
    ):
        assert FunctionReward(function, name="f").score(["p"], ["abc"]).tolist() == [expected]


def test_impossible_signatures_are_refused_at_the_door() -> None:
    async def later(completions: list[str]) -> list[float]:
        return []

    with pytest.raises(RewardSpecError, match=r"'f' has the signature \(text\), expected"):
        FunctionReward(lambda text: [0.0], name="f")
    with pytest.raises(RewardSpecError, match="async"):
        FunctionReward(later, name="f")
    with pytest.raises(RewardSpecError, match="no Python signature"):
        FunctionReward(max, name="f")


def test_only_importable_functions_can_be_rebuilt() -> None:
    local = FunctionReward(lambda completions: [0.0], name="zero").describe()
    assert json.loads(json.dumps(local)) == {
        "name": "zero",
        "kind": "function",
        "spec": None,
        "revision": None,
    }
    spec = FunctionReward(json.dumps, name="dumps").describe()["spec"]
    assert spec == "json:dumps"
    assert import_function(spec) is json.dumps
    assert import_function("os:path.join") is __import__("os").path.join


def test_modules_of_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards_here.py").write_text("def f(completions):\n    return [5.0]\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert FunctionReward(import_function("my_rewards_here:f"), name="f").score(["p"], ["c"]) == 5
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "my_rewards_here")


@pytest.mark.parametrize("code", ["'import bomb'", "0", "3"])
def test_a_module_that_ends_the_program_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "a_script.py").write_text(f"import sys\nsys.exit({code})\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardSpecError, match=r"'a_script:f': SystemExit"):
        import_function("a_script:f")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module_anywhere:f", "Cannot import .* ModuleNotFoundError"),
        ("json:no_such_function", "Cannot find 'no_such_function'"),
        ("json:dumps.no_such", "Cannot find 'no_such'"),
        ("json:__name__", "is a str, expected a function"),
    ],
)
def test_what_cannot_be_imported_is_refused(spec: str, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        import_function(spec)


def test_a_module_that_fails_to_import_keeps_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardSpecError, match="ZeroDivisionError") as info:
        import_function("my_broken_rewards:f")
    assert isinstance(info.value.__cause__, ZeroDivisionError)
