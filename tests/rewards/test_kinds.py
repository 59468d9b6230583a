"""Kinds: those there are, and that one more is a file of its own."""

from __future__ import annotations

import json

import pytest
import torch

from moodpo.errors import RewardSpecError
from moodpo.rewards import RewardPanel, check_columns, check_reward_specs, kinds, load_rewards
from moodpo.rewards.kinds import KINDS, kind_of_target, list_presets
from moodpo.rewards.lexical import LEXICAL
from moodpo.rewards.presets import PRESETS
from moodpo.rewards.specs import parse_spec, rebuild_specs
from tiny_kinds import CountKind, CountReward, CountSpec


def test_the_table_lists_every_name_once() -> None:
    rows = list_presets()
    assert [row.name for row in rows] == [*PRESETS, *LEXICAL]
    by_name = {row.name: row for row in rows}
    assert by_name["faithful"].spec == "CogComp/bart-faithful-summary-detector"
    assert by_name["faithful"].input == "({response}, {prompt})"
    assert by_name["faithful"].license == "CC-BY-SA-4.0"
    assert "[-1, 1]" in by_name["positivity"].summary
    assert not set(PRESETS) & set(LEXICAL)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("helpful", "preset"),
        ("brevity", "lexical"),
        ("json:dumps", "function"),
        ("./helpful", "model"),
        ("owner/model", "model"),
    ],
)
def test_every_target_has_one_kind(target: str, kind: str) -> None:
    assert kind_of_target(target).name == kind
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_what_no_kind_knows_is_refused_with_all_that_they_take() -> None:
    with pytest.raises(RewardSpecError) as refused:
        kind_of_target("zzz")
    assert str(refused.value).endswith(
        "richness. Otherwise pass a folder, a Hub id (owner/model), or a function "
        "(package.module:function)."
    )


# --- one more kind --------------------------------------------------------------------------------


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line in `KINDS`."""
    monkeypatch.setattr(kinds, "KINDS", (CountKind(), *KINDS))


@pytest.mark.usefixtures("counting")
def test_a_new_kind_is_read_checked_loaded_described_and_rebuilt() -> None:
    spec = parse_spec("vowels=count:e@v2#case=any")
    assert isinstance(spec, CountSpec)
    assert (spec.name, spec.target, spec.revision) == ("vowels", "count:e", "v2")
    assert parse_spec("count:e").name == "count_e"
    texts = ["vowels=count:e@v2#case=any", "es", "brevity"]
    check_reward_specs(texts)
    panel = RewardPanel(load_rewards(texts))
    asked = ["p", "p"], ["Ever", "eel"]
    assert panel.score(*asked)[:, :2].tolist() == [[2, 1], [2, 2]]
    first, second = panel.rewards[:2]
    assert isinstance(first, CountReward)
    assert isinstance(second, CountReward)
    assert first.calls is second.calls  # kept for one call to load_rewards
    described = json.loads(json.dumps(panel.describe()))
    again = rebuild_specs(described)
    assert again == ["vowels=count:e@v2#case=any", "count_s=count:e", "brevity=brevity"]
    rebuilt = RewardPanel(load_rewards(again))
    assert rebuilt.describe() == panel.describe()
    assert torch.equal(rebuilt.score(*asked), panel.score(*asked))


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count:e#size=1", "an option cannot be 'size'. Use one of case"),
        ("count:e#case=no", "case cannot be 'no'"),
        ("count:ee", "counts one letter"),
        ("ess", r"Did you mean es\?"),
        ("zzz", r"Known names: es, helpful.*or a letter \(count:letter\)"),
    ],
)
def test_a_new_kind_refuses_in_its_own_words(text: str, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        check_reward_specs([text], minimum=1)


@pytest.mark.usefixtures("counting")
def test_a_new_kind_sees_the_columns() -> None:
    check_columns(["count:e", "helpful", "brevity"], ["other"])
    with pytest.raises(RewardSpecError, match="a banned column"):
        check_columns(["count:e"], ["banned"])
