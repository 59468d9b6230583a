"""Flags: parsing by dataclass, config files, unknown names, help."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moodpo.cli.flags import (
    CommandParser,
    FlagSet,
    flags_of,
    format_help,
    read_config_file,
    refuse_unknown,
    to_arguments,
)
from moodpo.errors import ConfigError


@dataclass
class Settings:
    """Some of every kind."""

    text: str | None = field(default=None, metadata={"help": "A text.", "room": "one"})
    count: int = field(default=3, metadata={"help": "A count. With a second sentence."})
    rate: float = field(default=0.5, metadata={"help": "A rate."})
    on: bool = field(default=True, metadata={"help": "A switch."})
    maybe: bool | None = field(default=None, metadata={"help": "A switch that may be unset."})
    names: list[str] | None = field(default=None, metadata={"help": "Names."})
    numbers: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Numbers."})
    kind: str = field(default="a", metadata={"help": "A kind.", "choices": ["a", "b"]})
    extra: dict[str, int] | str | None = field(default=None, metadata={"help": "JSON."})
    report_to: str = field(default="none", metadata={"help": "Trackers."})


FLAGS = flags_of(Settings, room=lambda f: f.metadata.get("room", "two"), skip=("rate",))


def parse(*argv):
    return FlagSet(FLAGS).parse(argv)


def test_rooms_types_and_defaults_come_from_the_fields():
    by_name = {flag.name: flag for flag in FLAGS}
    assert "rate" not in by_name
    assert (by_name["text"].room, by_name["count"].room) == ("one", "two")
    assert by_name["numbers"].default == [1.0]
    assert by_name["kind"].choices == ("a", "b")


def test_only_what_was_given_is_returned():
    assert parse() == ({}, [])
    assert parse("--count", "3") == ({"count": 3}, [])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--on", "False"], {"on": False}),
        (["--on", "true"], {"on": True}),
        (["--on"], {"on": True}),
        (["--no_on"], {"on": False}),
        (["--maybe"], {"maybe": True}),
        (["--maybe", "False"], {"maybe": False}),
        (["--names", "x", "y"], {"names": ["x", "y"]}),
        (["--numbers", "0.5", "2"], {"numbers": [0.5, 2.0]}),
        (["--report_to", "wandb", "tensorboard"], {"report_to": ["wandb", "tensorboard"]}),
        (["--count", "1", "--count", "2"], {"count": 2}),
        (["--kind=b"], {"kind": "b"}),
    ],
)
def test_values(argv, expected):
    assert parse(*argv) == (expected, [])


def test_other_arguments_are_handed_back_in_order():
    values, rest = parse("--names", "x", "--other", "1", "2", "--text", "t", "--more=3")
    assert values == {"names": ["x"], "text": "t"}
    assert rest == ["--other", "1", "2", "--more=3"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", "x"], "--count: invalid int value: 'x'. See"),
        (["--kind", "c"], "--kind: invalid choice: 'c'"),
        (["--on", "perhaps"], "--on: Truthy value expected"),
        (["--names"], "--names: expected at least one argument"),
    ],
)
def test_wrong_values_are_one_short_message(argv, message):
    with pytest.raises(ConfigError) as refused:
        parse(*argv)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_abbreviations_are_not_guessed():
    assert parse("--coun", "4") == ({}, ["--coun", "4"])


plain_text = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1)


@given(
    text=plain_text,
    count=st.integers(-100, 100),
    on=st.booleans(),
    names=st.lists(plain_text.filter(lambda t: not t.startswith("-")), min_size=1, max_size=3),
    numbers=st.lists(st.floats(min_value=0), min_size=1, max_size=3),
    extra=st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
def test_values_survive_as_arguments(text, count, on, names, numbers, extra):
    import json

    given_values = {"text": text, "count": count, "on": on, "names": names, "numbers": numbers}
    values, rest = FlagSet(FLAGS).parse(to_arguments({**given_values, "extra": extra}))
    assert rest == []
    assert json.loads(values.pop("extra")) == extra
    assert values == given_values


def test_none_leaves_a_flag_alone():
    assert to_arguments({"text": None, "count": 1}) == ["--count=1"]


def test_unknown_names_get_near_matches():
    known = {"csv_path", "eval_csv_path", "beta", "use_peft"}
    refuse_unknown(["--csv-path", "--beta=3", "--no_use_peft"], known)
    with pytest.raises(ConfigError, match=r"Unknown flag --csv_pth\. Did you mean --csv_path"):
        refuse_unknown(["--csv_pth"], known)
    with pytest.raises(ConfigError, match=r"Unknown flag --zzz\. See `moodpo train --help`"):
        refuse_unknown(["--zzz"], known)
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key 'bet'\. Did you mean beta\?"):
        refuse_unknown(["bet"], known, origin="run.yaml")


def test_config_file_is_a_mapping_of_flags(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning-rate: 5e-7\nreward_models: [a, b]\nbf16: true\nmax_samples:\n")
    values = read_config_file(str(path))
    assert to_arguments(values) == [
        *("--learning_rate=5e-7", "--reward_models", "a", "b", "--bf16=True")
    ]
    path.write_text("")
    assert read_config_file(str(path)) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "holds a list, expected a mapping"),
        ("a: [", "is not YAML"),
        (None, "No such file"),
    ],
)
def test_config_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config_file(str(path))


def test_help_groups_by_room_and_condenses_one():
    text = format_help("usage: x", "Does.", FLAGS, {"two": "second", "one": "first"}, brief="two")
    lines = text.splitlines()
    assert lines.index("second:") < lines.index("first:")
    assert "  --count N" in lines
    assert "      A count. Default: 3." in lines  # the second sentence is left out
    assert "  --kind {a,b}" in lines
    assert "  --on True|False" in lines
    full = format_help("usage: x", "Does.", FLAGS, {"two": "second"}, brief="")
    assert "A count. With a second sentence. Default: 3." in full


def test_commands_refuse_in_one_sentence_and_mix_positionals():
    parser = CommandParser(prog="moodpo test")
    parser.add_argument("first")
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--flag")
    args = parser.read(["a", "--flag", "x", "b", "c"])
    assert (args.first, args.rest, args.flag) == ("a", ["b", "c"], "x")
    with pytest.raises(ConfigError, match=r"required: first.*See `moodpo test --help`\."):
        parser.read([])
