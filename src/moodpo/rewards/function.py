"""Function: Python callables as rewards, with TRL's signature.

    def reward(prompts, completions, **columns) -> list[float | None]

Called with keywords. It gets what it asks for by name, or everything if it takes `**kwargs`:
`prompts` and `completions`, any data column as N values, and `completion_ids` as N lists where the
policy's own tokens are known. A plain prompt and its completion are texts. Of a conversation the
prompt is its list of messages and the completion `[{"role": "assistant", "content": text}]`. None
means "no score". Knows no models. Shapes: N texts.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moodpo.errors import RewardError, RewardSpecError
from moodpo.rewards.base import Columns, Description, as_scores, call_scorer, check_lengths
from moodpo.rewards.cache import ScoreIdentity, new_serial
from moodpo.rewards.grammar import NamedReward, RewardSpec, objective_name, refuse_options

if TYPE_CHECKING:
    from torch import Tensor

    from moodpo.records import Prompt
    from moodpo.rewards.kinds import Shared

__all__ = ["FunctionKind", "FunctionReward", "import_function"]

FUNCTION_SPEC = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*(?:\.\w+)*")
"""`package.module:function`; attributes may follow: `package.module:Class.method`."""


NEVER_PASSED = ("environments", "log_extra", "log_metric", "trainer_state")
"""What TRL's trainers pass beside columns, and a panel does not know."""


class FunctionReward:
    """A callable as a reward of a panel.

    Args:
        function: `f(prompts, completions, **columns) -> N numbers or Nones`.
        name: The objective's name.
        spec: `package.module:function`, where the function can be imported from; found out when
            omitted.
        deterministic: Whether the score of a row follows from that row alone (its texts and the
            columns that the function takes), however often it is asked: such scores are
            remembered. When omitted, what `function.deterministic` says, and False without it.

    Raises:
        RewardSpecError: If it takes neither `completions` nor `**kwargs`, or is asynchronous.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        spec: str | None = None,
        deterministic: bool | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.spec = spec or _importable(function)
        self._wanted, self._required = _parameters(function, name)
        says = getattr(function, "deterministic", False)
        self.deterministic = says is True if deterministic is None else deterministic
        self._serial = new_serial()

    @classmethod
    def of(cls, function: Callable[..., Any], name: str | None = None) -> FunctionReward:
        """A callable under its own name, unless another is given."""
        own = getattr(function, "__name__", type(function).__name__)
        return cls(function, name=name or objective_name(own))

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Columns | None = None,
    ) -> Tensor:
        """Scores `[N]`; see `Reward.score`.

        Raises:
            RewardError: If the function raised, answered something else than N finite numbers or
                Nones, or needs a column that the data lack.
        """
        check_lengths(prompts, completions, columns)
        if problem := self._problem_of(columns or {}):
            raise RewardError(problem)
        known = dict(columns or {})
        known["prompts"] = [_messages_or_text(prompt) for prompt in prompts]
        known["completions"] = [
            completion
            if isinstance(prompt, str)
            else [{"role": "assistant", "content": completion}]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        wanted = known if self._wanted is None else {k: known[k] for k in self._wanted & set(known)}
        values = call_scorer(self.name, self.function, **wanted)
        return as_scores(self.name, values, count=len(completions))

    def check_columns(self, columns: Iterable[str]) -> None:
        """Refuses data that lack what the function cannot do without.

        Args:
            columns: Names of what `score` will be given.

        Raises:
            RewardSpecError: Naming what is missing.
        """
        if problem := self._problem_of(columns):
            raise RewardSpecError(problem)

    def _problem_of(self, columns: Iterable[str]) -> str | None:
        known = list(columns)
        missing = sorted(self._required - {"prompts", "completions", *known})
        if not missing:
            return None
        remedy = "Add the column, or give it a default."
        if never := [name for name in missing if name in NEVER_PASSED]:
            remedy = f"{', '.join(never)} of TRL is not passed here: give it a default."
        elif "completion_ids" in missing:
            remedy = (
                "Only texts are known here, not the tokens that were sampled: give it a default."
            )
        return (
            f"Reward {self.name!r} needs {', '.join(missing)}, but the data have the columns "
            f"{', '.join(known) or '(none)'}. {remedy}"
        )

    @property
    def score_identity(self) -> ScoreIdentity | None:
        """This very object with the columns it takes; None unless it is `deterministic`."""
        if type(self) is not FunctionReward or not self.deterministic:
            return None
        columns = None if self._wanted is None else frozenset(self._wanted)
        return ScoreIdentity(f"function {self._serial}", columns)

    def describe(self) -> Description:
        """Name, kind, and the spec where the function can be imported again."""
        return {"name": self.name, "kind": "function", "spec": self.spec, "revision": None}


class FunctionKind:
    """`package.module:function`."""

    name = "function"
    form = "a function (package.module:function)"

    def listed(self) -> list[NamedReward]:
        """None goes by name."""
        return []

    def matches(self, target: str) -> bool:
        """Whether it has the form, wherever it leads."""
        return bool(FUNCTION_SPEC.fullmatch(target))

    def read(self, spec: RewardSpec) -> RewardSpec:
        """As it is: a function takes no options."""
        refuse_options(spec)
        return spec

    def check(self, spec: RewardSpec, columns: Iterable[str] | None = None) -> None:
        """Refuses a function that cannot be imported, or needs what the data lack."""
        function = FunctionReward(import_function(spec.target), name=spec.name, spec=spec.target)
        if columns is not None:
            function.check_columns(columns)

    def build(self, spec: RewardSpec, shared: Shared) -> FunctionReward:
        """The imported function."""
        return FunctionReward(import_function(spec.target), name=spec.name, spec=spec.target)


def _messages_or_text(prompt: Prompt) -> str | list[dict[str, str]]:
    return prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def import_function(spec: str) -> Any:
    """Imports `package.module:function`; modules of the working directory are found too.

    Raises:
        RewardSpecError: If the module cannot be imported, or lacks the callable.
    """
    module_name, _, path = spec.partition(":")
    try:
        with _working_directory_importable():
            found: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script's sys.exit, too
        raise RewardSpecError(
            f"Cannot import the reward {spec!r}: {type(error).__name__}: {error}. Install the "
            "module, or run from the folder that holds it."
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise RewardSpecError(
                f"Cannot find {attribute!r} of the reward {spec!r}: "
                f"{getattr(found, '__name__', found)} has no such attribute. Check the spelling."
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise RewardSpecError(
            f"{spec!r} is a {type(found).__name__}, expected a function "
            "f(prompts, completions, **columns) -> list of numbers."
        )
    return found


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """A console script has its own folder on the path, not the one that the user stands in."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _parameters(function: Callable[..., Any], name: str) -> tuple[set[str] | None, set[str]]:
    """Names the function takes (None: all, it has **kwargs), and names it cannot do without."""
    called = getattr(type(function), "__call__", None)  # noqa: B004
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
        raise RewardSpecError(
            f"Reward {name!r} is an async function. Wrap it in one that runs it: "
            "asyncio.run(f(...))."
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise RewardSpecError(
            f"Reward {name!r} ({function!r}) has no Python signature. Wrap it in a function "
            "f(prompts, completions, **columns)."
        ) from None
    parameters = signature.parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = {p.name for p in named}
    if not takes_all and "completions" not in names:
        raise RewardSpecError(
            f"Reward {name!r} has the signature {signature}, expected "
            "f(prompts, completions, **columns) -> list of numbers."
        )
    return None if takes_all else names, {p.name for p in named if p.default is p.empty}


def _importable(function: Callable[..., Any]) -> str | None:
    """Where another process can import the very same object from, if anywhere."""
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    spec = f"{module}:{path}"
    if module in (None, "__main__") or not FUNCTION_SPEC.fullmatch(spec):
        return None
    found: Any = sys.modules.get(str(module))
    for attribute in str(path).split("."):
        found = getattr(found, attribute, None)
    return spec if found is function else None
