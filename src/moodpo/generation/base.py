"""What every generation backend takes and gives back.

Knows nothing of models, tensors or text: prompts and completions are token ids.
Shapes: B prompts, n completions per prompt, T completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from moodpo.errors import ConfigError, GenerationError
from moodpo.records import Completion, TokenIds

__all__ = ["Completion", "Generator", "SamplingConfig", "Who", "check_request"]

Who: TypeAlias = Literal["policy", "reference"]
"""Whose completions are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How tokens are drawn from the model's distribution.

    The order is temperature, then top-k, then top-p over what top-k left. Tokens that tie with
    the last one kept are kept too, so that the result depends on no sorting order.

    Raises:
        ConfigError: If a value is out of its range; the message names it.
    """

    max_new_tokens: int  # T: longest completion, at least 1
    min_new_tokens: int = 0  # end-of-sequence tokens are masked before that many tokens
    temperature: float = 1.0  # 0 is greedy decoding
    top_p: float = 1.0  # smallest set of tokens with that mass; 1 is off
    top_k: int = 0  # the k likeliest tokens; 0 is off

    def __post_init__(self) -> None:
        _require_integer("max_new_tokens", self.max_new_tokens, minimum=1)
        _require_integer("min_new_tokens", self.min_new_tokens, minimum=0)
        _require_integer("top_k", self.top_k, minimum=0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens is {self.min_new_tokens} but max_new_tokens is "
                f"{self.max_new_tokens}. Lower min_new_tokens or raise max_new_tokens."
            )
        # Below that, dividing logits by the temperature loses its meaning in float32.
        if self.temperature != 0 and not 1e-4 <= self.temperature < math.inf:
            raise ConfigError(
                f"temperature must be 0 or a finite number of at least 1e-4, got "
                f"{self.temperature}. Use 0 for greedy decoding, 1 for the model's distribution."
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p must be above 0 and at most 1, got {self.top_p}. Use 1 to turn it off."
            )

    def changed(self, **changes: float | None) -> SamplingConfig:
        """The same with some settings changed; None changes nothing.

        A shorter `max_new_tokens` brings `min_new_tokens` down with it.
        """
        given: dict[str, Any] = {name: v for name, v in changes.items() if v is not None}
        longest = given.get("max_new_tokens", self.max_new_tokens)
        return replace(self, **{"min_new_tokens": min(self.min_new_tokens, longest), **given})


@runtime_checkable
class Generator(Protocol):
    """A backend that samples completions, in this process or elsewhere.

    It never finds out by itself whom it samples from: it is told with each request, and which
    version of the policy is the present one by `sync`.
    """

    def generate(
        self,
        prompt_ids: Sequence[TokenIds],
        *,
        sampling: SamplingConfig,
        num_completions: int,
        seeds: Sequence[int],
        who: Who = "policy",
    ) -> list[tuple[Completion, ...]]:
        """Samples completions of all prompts.

        Args:
            prompt_ids: B prompts, none empty.
            sampling: How tokens are drawn.
            num_completions: n, completions per prompt.
            seeds: B integers. Completion j of prompt i depends on `seeds[i]`, j and the prompt
                alone (up to float rounding): not on the other prompts, nor on how they are
                batched or spread over processes.
            who: The policy, or the reference that it is held close to.

        Returns:
            B tuples of n completions, in the order of the prompts.

        Raises:
            GenerationError: If a prompt cannot be continued, or the model's answer is not finite.
        """
        ...

    def sync(self, version: int) -> None:
        """Requests from now on are for this version of the policy.

        Args:
            version: Optimizer steps so far; the same version may come again.
        """
        ...

    def close(self) -> None:
        """Lets go of what lies outside this process; the next request opens it again."""
        ...


def check_request(
    prompt_ids: Sequence[TokenIds], *, num_completions: int, seeds: Sequence[int]
) -> None:
    """Refuses what no backend can do, before any work.

    Args:
        prompt_ids: B prompts.
        num_completions: n, at least 1.
        seeds: B integers.

    Raises:
        GenerationError: If a prompt is empty, the counts differ, or n is below 1.
    """
    if num_completions < 1:
        raise GenerationError(f"num_completions must be at least 1, got {num_completions}.")
    if len(seeds) != len(prompt_ids):
        raise GenerationError(
            f"Got {len(prompt_ids)} prompts but {len(seeds)} seeds. Pass one seed per prompt."
        )
    empty = [i for i, prompt in enumerate(prompt_ids) if len(prompt) == 0]
    if empty:
        raise GenerationError(
            f"{len(empty)} of {len(prompt_ids)} prompts have no tokens (first: prompt "
            f"{empty[0]}). A model cannot continue nothing: start prompts with a "
            "beginning-of-sequence token or drop them."
        )


def _require_integer(name: str, value: int, *, minimum: int) -> None:
    # bool is an int to Python; here it can only be a mix-up of arguments.
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
