"""`moodpo chat`: a conversation whose weights change as you go."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moodpo.cli.console import keep_undecodable_bytes, note, print_out
from moodpo.cli.flags import CommandParser
from moodpo.cli.generate import objectives_in
from moodpo.cli.policies import (
    add_policy_flags,
    add_sampling_flags,
    load_policy,
    quick_manifest,
)
from moodpo.conditioning.weights import parse_weights
from moodpo.errors import ConfigError, DataError, GenerationError, WeightsError

if TYPE_CHECKING:
    from moodpo.policy import SteerablePolicy

__all__ = ["Chat", "run"]

_COMMAND = re.compile(r"/[a-z]*")  # a path or a fraction is something to say

HELP = "/weights NAME=X,… changes the weights · /reset forgets the conversation · /quit ends"


def run(argv: Sequence[str]) -> int:
    """Talks until the end of input; returns the exit code."""
    args = _parser().read(argv)
    manifest = quick_manifest(args.policy, args.base_model)
    names = manifest.objectives if manifest else args.objectives or objectives_in([args.weights])
    if not names:
        raise ConfigError(f"{args.policy} has no moodpo.json. Name its objectives: --objectives.")
    even = tuple(1 / len(names) for _ in names)
    weights = parse_weights(args.weights, names) if args.weights else even
    policy = load_policy(args, tuple(names))
    sampling = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_p")}
    chat = Chat(policy, weights, seed=args.seed, **sampling)
    note(HELP)
    note(chat.describe_weights())
    keep_undecodable_bytes()
    while (line := _read_line()) is not None:
        try:
            if not chat.take(line.strip()):
                break
        except (WeightsError, DataError) as error:
            note(str(error))
        except GenerationError as error:
            remedy = " Forget the conversation with /reset." if chat.history else ""
            note(f"{error}{remedy}")
    return 0


class Chat:
    """The state of one conversation.

    Args:
        policy: Who answers.
        weights: K values on the simplex, to begin with.
        seed: Of all answers.
        **sampling: `max_new_tokens`, `temperature`, `top_p`; None is as in training.
    """

    def __init__(
        self,
        policy: SteerablePolicy,
        weights: Sequence[float],
        *,
        seed: int,
        **sampling: float | None,
    ) -> None:
        self.policy = policy
        self.weights = tuple(weights)
        self.history: list[dict[str, str]] = []
        self._seed, self._sampling = seed, sampling

    def take(self, line: str) -> bool:
        """Handles one line; False ends the conversation."""
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self.history.clear()
            note("the conversation is forgotten")
        elif command == "/weights":
            if rest.strip():
                self.weights = parse_weights(rest, self.policy.objectives)
            note(self.describe_weights())
        elif _COMMAND.fullmatch(command):
            note(f"there is no {command}; a message that begins so is written /{command}. {HELP}")
        elif line:
            print_out(self.answer(line.removeprefix("/") if line.startswith("//") else line))
        return True

    def answer(self, text: str) -> str:
        """The policy's reply, remembered with what was said."""
        conversation = [*self.history, {"role": "user", "content": text}]
        (reply,) = self.policy.generate(
            conversation,
            self.weights,
            seed=self._seed,
            **self._sampling,  # type: ignore[arg-type]
        )
        self.history = [*conversation, {"role": "assistant", "content": reply.strip()}]
        return reply.strip()

    def describe_weights(self) -> str:
        """The weights by name."""
        named = zip(self.policy.objectives, self.weights, strict=True)
        return "weights: " + ", ".join(f"{name}={weight:.2g}" for name, weight in named)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="moodpo chat", description=f"A conversation with a policy. In it: {HELP}."
    )
    parser.add_argument(
        "--weights", default="", metavar="NAME=X,…", help="to begin with (default: all equal)"
    )
    parser.add_argument(
        "--objectives", nargs="+", metavar="NAME", help="for a model that moodpo did not train"
    )
    add_policy_flags(parser)
    add_sampling_flags(parser)
    return parser


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
