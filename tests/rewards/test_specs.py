from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moodpo.errors import RewardSpecError
from moodpo.rewards.lexical import LEXICAL
from moodpo.rewards.presets import PRESETS
from moodpo.rewards.specs import (
    RewardSpec,
    Scoring,
    check_objective_names,
    list_presets,
    objective_name,
    parse_spec,
    rebuild_specs,
)

# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_go_by_name(name: str) -> None:
    spec = parse_spec(name)
    assert (spec.name, spec.kind, spec.target) == (name, "preset", name)
    assert spec.checkpoint == PRESETS[name].checkpoint
    assert spec.pinned is PRESETS[name].revision
    assert spec.scoring == Scoring(input=PRESETS[name].input, preset=PRESETS[name])


def test_the_whole_syntax_at_once() -> None:
    spec = parse_spec("truth=faithful@abc123#score=margin&response=first-sentence&max_tokens=64")
    assert (spec.name, spec.kind, spec.target) == ("truth", "preset", "faithful")
    assert spec.pinned == "abc123"
    assert spec.scoring is not None
    assert (spec.scoring.score, spec.scoring.response) == ("margin", "first-sentence")
    assert spec.scoring.max_tokens == 64
    assert spec.rebuildable == "faithful#score=margin&response=first-sentence&max_tokens=64"


def test_hub_ids_functions_and_scorers() -> None:
    hub = parse_spec("tone=some-org/senti.ment@v1.0#label=positive&input=response")
    assert (hub.kind, hub.target, hub.revision) == ("model", "some-org/senti.ment", "v1.0")
    assert hub.scoring == Scoring(input="response", label="positive")
    assert parse_spec("some-org/senti.ment").name == "senti_ment"
    assert parse_spec("org/rm#label=1").scoring == Scoring(label=1)
    assert parse_spec("org/rm@refs/pr/3").pinned == "refs/pr/3"
    function = parse_spec("my.package:Scores.brief")
    assert (function.kind, function.name) == ("function", "Scores_brief")
    assert parse_spec("calm=neutrality").target == "neutrality"


def test_the_exact_id_of_a_presets_checkpoint_is_read_in_its_format() -> None:
    spec = parse_spec("CogComp/bart-faithful-summary-detector")
    assert spec.scoring is not None
    assert spec.scoring.preset is PRESETS["faithful"]  # not `summary`, whose name is inside the id
    assert parse_spec("CogComp/bart-faithful-summary-detector2").scoring == Scoring()


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helpful").mkdir()
    (tmp_path / "odd@name" / "r#m=1").mkdir(parents=True)
    assert parse_spec("helpful").kind == "preset"
    local = parse_spec("./helpful#like=harmless")
    assert (local.kind, local.name) == ("model", "helpful")
    assert local.target == str(tmp_path / "helpful")
    assert local.scoring == Scoring(input="hh", preset=PRESETS["harmless"])
    odd = parse_spec("odd@name/r#m=1")
    assert (odd.target, odd.name) == (str(tmp_path / "odd@name" / "r#m=1"), "r_m_1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_spec("~/helpful").target == str(tmp_path / "helpful")
    with pytest.raises(RewardSpecError, match="revision 'v1' of a local folder"):
        parse_spec("./helpful@v1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("helpfull", "Unknown reward 'helpfull'. Did you mean helpful?"),
        ("breviti", "Did you mean brevity"),
        ("zzz", "Unknown reward 'zzz'. Known names: helpful, harmless"),
        ("", "is empty"),
        ("helpful@", "empty revision"),
        ("brevity#label=1", "options and revisions are for models"),
        ("brevity@v1", "options and revisions are for models"),
        ("json:dumps#label=1", "options and revisions are for models"),
        ("faithful#margin", "cannot read the option 'margin'"),
        ("faithful#score=", "cannot read the option 'score='"),
        ("faithful#score=logit&score=margin", "each option once"),
        ("faithful#score=ratio", "score cannot be 'ratio'. Use one of logit, margin"),
        ("faithful#scores=margin", "an option cannot be 'scores'. Use one of score, response"),
        ("org/rm#like=nice", "like cannot be 'nice'. Use one of helpful"),
        ("org/rm#input=poem", "input cannot be 'poem'"),
        ("org/rm#max_tokens=0", "max_tokens is a whole number"),
        ("~no_such_user_here/rm#label=1&label", "cannot read the option 'label'"),
    ],
)
def test_unreadable_specs_are_refused_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        parse_spec(text)


@example("~\x00")
@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_a_spec_error(text: str) -> None:
    try:
        spec = parse_spec(text)
    except RewardSpecError as error:
        message = str(error)
        assert len(message) > 20, message
    else:
        assert spec.target
        check_objective_names([spec.name])


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/models/my-rm/", "my-rm"),
        ("org/rm.v2", "rm_v2"),
        ("org/7b-rm", "reward_7b-rm"),
        ("pkg.mod:f", "f"),
        ("<lambda>", "_lambda_"),
    ],
)
def test_default_names(target: str, name: str) -> None:
    assert objective_name(target) == name


# --- the table, and the way back -----------------------------------------------------------------


def test_the_table_lists_every_name_once() -> None:
    rows = list_presets()
    assert [row.name for row in rows] == [*PRESETS, *LEXICAL]
    by_name = {row.name: row for row in rows}
    assert by_name["faithful"].spec == "CogComp/bart-faithful-summary-detector"
    assert by_name["faithful"].input == "({response}, {prompt})"
    assert by_name["faithful"].license == "CC-BY-SA-4.0"
    assert "[-1, 1]" in by_name["positivity"].summary
    assert not set(PRESETS) & set(LEXICAL)


def test_descriptions_lead_back_to_the_very_revision() -> None:
    descriptions = [
        {"name": "safe", "spec": "harmless", "revision": "abc"},
        {"name": "t", "spec": "faithful#score=margin", "revision": "def"},
        {"name": "b", "spec": "brevity", "revision": None},
    ]
    specs = rebuild_specs(descriptions)
    assert specs == ["safe=harmless@abc", "t=faithful@def#score=margin", "b=brevity"]
    parsed: list[RewardSpec] = [parse_spec(spec) for spec in specs]
    assert [spec.pinned for spec in parsed] == ["abc", "def", None]


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("lr=1/rm", "rm", "lr=1/rm"),
        ("lr=1/rm#like=helpful", "rm", "lr=1/rm"),
        ("tone=lr=1/rm", "tone", "lr=1/rm"),
        ("lr=./rm", "lr", "rm"),
        ("lr=rm/sub", "lr", "rm/sub"),
    ],
)
def test_a_folder_that_exists_may_hold_an_equals_sign(
    text: str, name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in ("lr=1/rm", "rm/sub"):
        (tmp_path / each).mkdir(parents=True)
    spec = parse_spec(text)
    assert (spec.kind, spec.name, spec.target) == ("model", name, str(tmp_path / folder))
