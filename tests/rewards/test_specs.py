from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moodpo.errors import RewardSpecError
from moodpo.rewards.grammar import RewardSpec, check_objective_names
from moodpo.rewards.presets import PRESETS
from moodpo.rewards.scoring import ClassifierSpec, Scoring
from moodpo.rewards.specs import check_reward_specs, parse_spec, rebuild_specs

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
    assert isinstance(spec, ClassifierSpec)
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
    assert isinstance(spec, ClassifierSpec)
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


# --- the way back ---------------------------------------------------------------------------------


def test_descriptions_lead_back_to_the_very_revision() -> None:
    descriptions = [
        {"name": "safe", "spec": "harmless", "revision": "abc"},
        {"name": "t", "spec": "faithful#score=margin", "revision": "def"},
        {"name": "b", "spec": "brevity", "revision": None},
    ]
    specs = rebuild_specs(descriptions)
    assert specs == ["safe=harmless@abc", "t=faithful@def#score=margin", "b=brevity"]
    parsed: list[RewardSpec] = [parse_spec(spec) for spec in specs]
    assert [spec.revision for spec in parsed] == ["abc", "def", None]


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


# --- refusing before anything is loaded -----------------------------------------------------------


@pytest.mark.parametrize("specs", [[], ["helpful"]])
def test_a_trade_off_takes_two(specs: list[str]) -> None:
    with pytest.raises(RewardSpecError, match=f"2 or more rewards are needed, got {len(specs)}"):
        check_reward_specs(specs)
    check_reward_specs(["helpful"], minimum=1)


def test_a_text_is_no_list_of_specs() -> None:
    with pytest.raises(RewardSpecError, match="Pass a list"):
        check_reward_specs("helpful harmless")


def test_objective_names_are_distinct_and_spellable() -> None:
    with pytest.raises(RewardSpecError, match=r"2 rewards are named 'rm'.*first_rm=<spec>"):
        check_reward_specs(["a/rm", "b/rm", "helpful"])
    check_reward_specs(["a/rm", "other=b/rm"])
    with pytest.raises(RewardSpecError, match=r"'a\.b' cannot name an objective"):
        check_objective_names(["a.b"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./no/such/folder", "does not exist"),
        ("/no/such/folder", "does not exist"),
        ("a/b/c", "does not exist"),
        ("no_such_module_anywhere:f", "Cannot import"),
        ("json:no_such", "Cannot find"),
        ("os.path:basename", r"signature \(p\), expected"),
        ("nonsense", "Unknown reward"),
    ],
)
def test_what_cannot_be_there_is_refused(spec: str, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        check_reward_specs(["helpful", spec])


def test_a_mistyped_folder_is_not_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RewardSpecError, match="'checkpoints/rm' does not exist"):
        check_reward_specs(["helpful", "checkpoints/rm"])


def test_checking_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, moodpo.rewards as r\n"
        "r.check_reward_specs(['helpful', 'faithful#score=margin', 'brevity', 'json:dumps'])\n"
        "r.list_presets()\n"
        "sys.exit(str([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules] or ''))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
