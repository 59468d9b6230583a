"""Flags: dataclass fields → argparse flags by room, a config file → the same flags, and help.

Whatever is set anywhere (a task's defaults, a YAML file, the command line) becomes arguments of
one parser, later ones winning, so that every value is read and refused in one way. Knows nothing
of what the flags mean, and imports no torch.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, make_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from moodpo.errors import ConfigError
from moodpo.removed import refuse_removed

__all__ = [
    "CommandParser",
    "Flag",
    "FlagSet",
    "ParserExit",
    "flags_of",
    "format_help",
    "read_config_file",
    "refuse_unknown",
    "to_arguments",
]

_UNSET: Any = object()


class ParserExit(SystemExit):
    """A parser has said all there is to say, after `--help`; other exits are somebody else's."""


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that refuses in one short message: no usage dump, no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str) -> NoReturn:
        """Raises what the command line turns into exit code 2."""
        raise ConfigError(_said(message, self))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the command, as argparse does after `--help`."""
        raise ParserExit(status)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses arguments, positional ones before or after flags."""
        return self.parse_intermixed_args(list(argv))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag of one room."""

    name: str
    room: str
    type: Any
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    def as_field(self) -> tuple[str, Any, Any]:
        """As a field of a throw-away dataclass that `HfArgumentParser` reads."""
        metadata: dict[str, Any] = {"help": self.help}
        if self.choices:
            metadata["choices"] = list(self.choices)
        if isinstance(self.default, list):
            values = self.default
            return self.name, self.type, field(default_factory=lambda: values, metadata=metadata)
        return self.name, self.type, field(default=self.default, metadata=metadata)


def flags_of(
    cls: type,
    *,
    room: Callable[[Field[Any]], str],
    skip: Iterable[str] = (),
) -> list[Flag]:
    """The flags that a dataclass stands for.

    Args:
        cls: A dataclass whose fields have defaults.
        room: Names the room of a field.
        skip: Fields that are no flags.
    """
    hints = get_type_hints(cls)
    return [
        Flag(
            name=f.name,
            room=room(f),
            type=hints[f.name],
            default=f.default if f.default_factory is MISSING else f.default_factory(),
            help=str(f.metadata.get("help", "")),
            choices=tuple(f.metadata.get("choices", ())),
        )
        for f in fields(cls)
        if f.init and f.name not in set(skip)
    ]


class FlagSet:
    """A parser of flags; what was not given is told apart from what was given as its default.

    Args:
        flags: Of all rooms.
    """

    def __init__(self, flags: Sequence[Flag]) -> None:
        from moodpo._upstream import HfArgumentParser

        class Parser(HfArgumentParser):  # type: ignore[misc]
            def error(self, message: str) -> NoReturn:
                raise ConfigError(_said(message, self))

        self.flags = list(flags)
        holder = make_dataclass("Flags", [flag.as_field() for flag in flags])
        self._parser = Parser(holder, add_help=False, allow_abbrev=False)
        for action in self._parser._actions:
            _loosen(action)

    def parse(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Reads the flags of this set.

        Args:
            argv: Arguments; of a flag given twice, the last one counts.

        Returns:
            Values of the flags that were given, and all arguments that are none of them.

        Raises:
            ConfigError: On a value of another type or choice.
        """
        blank = argparse.Namespace(**{flag.name: _UNSET for flag in self.flags})
        namespace, rest = self._parser.parse_known_args(list(argv), blank)
        return {n: v for n, v in vars(namespace).items() if v is not _UNSET}, rest


def _loosen(action: argparse.Action) -> None:
    """Lets `--gradient_checkpointing` stand alone, and `--report_to` take several trackers."""
    if getattr(action.type, "__name__", "") == "string_to_bool" and action.nargs is None:
        action.nargs, action.const = "?", True
    if action.dest == "report_to":
        action.nargs = "+"


def refuse_unknown(names: Iterable[str], known: Iterable[str], *, origin: str = "") -> None:
    """Refuses the first name that is no flag, with near matches.

    Args:
        names: As given, with or without leading dashes.
        known: Names of all flags.
        origin: The file that the names are from; the command line if empty.

    Raises:
        ConfigError: Naming it.
    """
    known = set(known)
    for name in names:
        plain = name.lstrip("-").partition("=")[0].replace("-", "_")
        if plain in known or (plain.startswith("no_") and plain[3:] in known):
            continue
        refuse_removed([plain])
        close = get_close_matches(plain, known, n=2)
        mark = "" if origin else "--"
        hint = f" Did you mean {' or '.join(mark + c for c in close)}?" if close else ""
        place = f"{origin}: unknown key {plain!r}" if origin else f"Unknown flag --{plain}"
        raise ConfigError(f"{place}.{hint or ' See `moodpo train --help`.'}")


def read_config_file(path: str) -> dict[str, Any]:
    """The keys and values of a YAML file of flags.

    Args:
        path: A mapping of flag names, without dashes, to values.

    Raises:
        ConfigError: If it cannot be read as one.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}. Pass a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise ConfigError(f"--config {path} is not YAML: {message}. Write `flag: value`.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"--config {path} holds a {type(content).__name__}, expected a mapping. Write one "
            "`flag: value` per line."
        )
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def to_arguments(values: Mapping[str, Any]) -> list[str]:
    """Values as the arguments that a person would type; None leaves a flag alone."""
    arguments: list[str] = []
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            arguments += [f"--{name}", *map(_text, value)]
        elif value is not None:
            arguments.append(f"--{name}={_text(value)}")
    return arguments


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def format_help(
    usage: str, description: str, flags: Sequence[Flag], rooms: Mapping[str, str], brief: str
) -> str:
    """Help by room.

    Args:
        usage: The first line.
        description: What the command does.
        flags: Of all rooms.
        rooms: Room to heading, in the order they are shown.
        brief: The room whose flags get one line each.
    """
    width = min(100, shutil.get_terminal_size().columns)
    lines = [usage, "", *textwrap.wrap(description, width)]
    for room, heading in rooms.items():
        members = [flag for flag in flags if flag.room == room]
        if members:
            lines += ["", f"{heading}:"]
            lines += [line for f in members for line in _flag_lines(f, width, room == brief)]
    return "\n".join(lines)


def _flag_lines(flag: Flag, width: int, brief: bool) -> list[str]:
    head = f"  --{flag.name} {_metavar(flag)}"
    text = " ".join(flag.help.replace("%%", "%").split())
    if brief:
        text = re.split(r"(?<=[.;:]) |\. ", text)[0].rstrip(".;:") + "."
    if flag.default not in (None, "", []) and "efault" not in text:
        text += f" Default: {_shown(flag.default)}."
    if brief:
        text = textwrap.shorten(text, max(20, width - 8), placeholder=" …")
    body = textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [head, *body]


def _metavar(flag: Flag) -> str:
    if flag.choices:
        return "{" + ",".join(flag.choices) + "}"
    kind = str(flag.type)
    if "list" in kind:
        return "VALUE …"
    for word, metavar in (("bool", "True|False"), ("int", "N"), ("float", "X"), ("dict", "JSON")):
        if word in kind:
            return metavar
    return "TEXT"


def _shown(value: Any) -> str:
    value = getattr(value, "value", value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _said(message: str, parser: argparse.ArgumentParser) -> str:
    """Argparse's message as a sentence with a remedy.

    Raises:
        ConfigError: Of what earlier versions had, with what to use instead.
    """
    if choice := re.search(r"argument --(\w+)[^:]*: invalid choice: '([^']*)'", message):
        refuse_removed([f"{choice[1]}={choice[2]}"])
    if message.startswith("unrecognized arguments"):
        refuse_removed(re.findall(r"--(\w+)", message))
    message = re.sub(r"argument (--\w+)(/--[\w-]+)*", r"\1", message)
    command = parser.prog if parser.prog.startswith("moodpo ") else "moodpo train"
    return f"{message[:1].upper()}{message[1:].rstrip('.')}. See `{command} --help`."
