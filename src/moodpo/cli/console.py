"""Console: what a person reads. Answers on stdout; notes, warnings and errors on stderr.

Under several processes only one speaks: the main one, and for errors one per machine. Knows
nothing of commands.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "fail",
    "is_main_process",
    "keep_undecodable_bytes",
    "note",
    "print_out",
    "print_table",
    "quiet_loading",
    "short_warnings",
    "shown_log",
    "warn",
]


def is_main_process() -> bool:
    """Whether this is process 0 of the launch, by the launcher's environment."""
    return os.environ.get("RANK", "0") == "0"


def print_out(text: str) -> None:
    """Prints a result on stdout."""
    if is_main_process():
        print(text, flush=True)


def print_table(table: Any) -> None:
    """Prints a `rich` table on stdout."""
    if is_main_process():
        from rich.console import Console

        # A pipe has no width; 80 columns would fold tables that a file holds well.
        Console(width=None if sys.stdout.isatty() else 140).print(table)


def note(text: str) -> None:
    """Says on stderr what is going on."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Says on stderr what deserves attention."""
    note(f"warning: {text}")


def fail(text: str) -> None:
    """Says on stderr why the command ends; one process per machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        rank = os.environ.get("RANK", "0")
        place = "" if rank == "0" else f" (process {rank})"
        print(f"moodpo: error{place}: {text}", file=sys.stderr, flush=True)


def keep_undecodable_bytes() -> None:
    """Lets standard input pass bytes that are not UTF-8: they are refused in words later."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def quiet_loading() -> None:
    """Keeps transformers' progress bars for terminals."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


@contextmanager
def short_warnings() -> Iterator[None]:
    """Within it, Python's warnings read as ours do: one line, no file name."""
    previous = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        # Deprecations are addressed to programmers, not to whoever runs a command.
        if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
            warn(" ".join(str(message).split()))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = previous


class _LogWarnings(logging.Handler):
    """Says what the library logs as a warning the way commands say theirs."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


@contextmanager
def shown_log() -> Iterator[None]:
    """Within it, the library's logged warnings are shown as warnings of the command."""
    logger, handler = logging.getLogger("moodpo"), _LogWarnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
