"""The dispatcher: help without heavy imports, exit codes, --debug."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from moodpo import cli
from moodpo.errors import (
    ConfigError,
    DivergenceError,
    MissingDependencyError,
    RewardError,
)

HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "numpy", "matplotlib")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], [], ["nonsense"], ["compare", "nowhere"], ["rewards", "--json"]],
)
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import sys; from moodpo.cli import main\n"
        f"main({arguments!r})\n"
        f"print('LOADED', [n for n in {HEAVY!r} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_module_and_console_script_answer_alike():
    module = [sys.executable, "-m", "moodpo", "--help"]
    done = subprocess.run(module, capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert f"  {name} " in done.stdout


def test_every_command_has_a_module_and_help(run):
    for name in cli.COMMANDS:
        outcome = run(name, "--help")
        assert outcome.code == 0
        assert f"moodpo {name}" in outcome.out


def test_version_is_the_package_version(run):
    from importlib.metadata import version

    assert run("--version").out.strip() == f"moodpo {version('moodpo')}"


def test_nothing_to_do_shows_help_and_is_bad_input(run):
    outcome = run()
    assert outcome.code == 2
    assert "usage: moodpo" in outcome.out


def test_unknown_command_names_the_nearest(run):
    outcome = run("evaluat")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Did you mean 'evaluate'?" in outcome.err


@pytest.fixture
def failing(monkeypatch):
    """Replaces a command by one that raises."""

    def install(error):
        def fail(argv):
            raise error

        monkeypatch.setitem(sys.modules, "moodpo.cli.env", types.SimpleNamespace(run=fail))

    return install


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("no such flag"), 2, "no such flag"),
        (MissingDependencyError("pip install x"), 2, "Install it with: pip install x"),
        (RewardError("scorer broke"), 1, "scorer broke"),
        (DivergenceError("loss is nan"), 1, "loss is nan"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero (--debug shows"),
        (OutOfMemoryError("CUDA"), 1, "--generation_batch_size"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(0), 1, "called sys.exit(0), so it is not done"),
        (SystemExit("text"), 1, "sys.exit('text')"),
        (SystemExit(3), 1, "sys.exit(3)"),
    ],
)
def test_exit_codes_and_messages(run, failing, error, code, said):
    failing(error)
    outcome = run("env")
    assert outcome.code == code
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_debug_raises(failing):
    failing(ConfigError("no such flag"))
    for argv in (["--debug", "env"], ["env", "--debug"]):
        with pytest.raises(ConfigError, match="no such flag"):
            cli.main(argv)


def test_a_value_of_debug_belongs_to_transformers(monkeypatch):
    seen = []
    recorder = types.SimpleNamespace(run=lambda argv: seen.extend(argv) or 0)
    monkeypatch.setitem(sys.modules, "moodpo.cli.env", recorder)
    assert cli.main(["env", "--debug", "underflow_overflow"]) == 0
    assert seen == ["--debug", "underflow_overflow"]


def test_only_one_process_per_machine_reports_an_error(run, failing, monkeypatch):
    failing(ConfigError("no such flag"))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run("env") == (2, "", "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "(process 1)" in run("env").err


def test_a_reader_that_left_is_no_failure(failing, run, monkeypatch):
    failing(BrokenPipeError())
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # main drops it; pytest gets it back
    assert cli.main(["env"]) == 0


def test_warnings_are_one_line(monkeypatch, capsys):
    import warnings

    def warn(argv):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("weights\nsum to 2", stacklevel=1)
            warnings.warn("old name", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setitem(sys.modules, "moodpo.cli.env", types.SimpleNamespace(run=warn))
    shown = warnings.showwarning
    assert cli.main(["env"]) == 0
    assert capsys.readouterr().err == "warning: weights sum to 2\n"
    assert warnings.showwarning is shown
