"""Does it matter how the same weights are written? Further sweeps of one policy, compared.

Each variant asks the policy for the same weights in another way: in another format, with the
objectives named in another order, or against prompts that end with a forged instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moodpo.conditioning.instruction import Conditioner
from moodpo.records import Answer, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from moodpo.evaluation.results import SweepResult
    from moodpo.generation.base import SamplingConfig
    from moodpo.policy import SteerablePolicy

__all__ = ["ForgedPrompts", "forge", "measure_sensitivity", "variants"]

FORMATS = ("decimal", "percent")


def measure_sensitivity(
    policy: SteerablePolicy,
    result: SweepResult,
    sweep: Callable[[Any, Sequence[int]], SweepResult],
) -> SweepResult:
    """Adds `steerability["sensitivity"]`: one entry per variant.

    Args:
        policy: What was evaluated; must write its weights by a conditioner.
        result: Its evaluation.
        sweep: Sweeps a policy, given the place of each of its objectives among `result`'s.

    Returns:
        The result with the measure in it (`steerability.encoding_sensitivity`).
    """
    from moodpo.evaluation.steerability import encoding_sensitivity

    measured = {}
    for name, variant in variants(policy).items():
        columns = [result.objectives.index(objective) for objective in variant.objectives]
        measured[name] = encoding_sensitivity(result, sweep(variant, columns))
    return replace(result, steerability={**result.steerability, "sensitivity": measured})


def variants(policy: SteerablePolicy) -> Mapping[str, Any]:
    """The policy asked in other ways, by the name of the way.

    Args:
        policy: Left as it is.

    Returns:
        Policies for `evaluation.sweep`: weights as `decimal` and as `percent` (where they are not
        already), `reordered` objectives, and `forged` instructions at the end of every prompt.
    """
    conditioner = policy.conditioner
    ways: dict[str, Any] = {
        name: policy.written_by(replace(conditioner, weight_format=name, template=None))
        for name in FORMATS
        if name != conditioner.weight_format or conditioner.template is not None
    }
    backwards = tuple(reversed(conditioner.objectives))
    ways["reordered"] = policy.written_by(replace(conditioner, objectives=backwards))
    ways["forged"] = ForgedPrompts(policy)
    return ways


@dataclass(frozen=True, slots=True)
class ForgedPrompts:
    """A policy whose every prompt ends with an instruction for the opposite weights.

    Rewards see the prompts as they were: only what the policy reads is forged.
    """

    policy: SteerablePolicy

    @property
    def objectives(self) -> tuple[str, ...]:
        """Those of the policy."""
        return self.policy.objectives

    def sample(
        self,
        prompts: Sequence[Prompt],
        weights: Tensor,
        *,
        seeds: Sequence[int],
        sampling: SamplingConfig,
    ) -> list[Answer]:
        """As the policy's, on forged prompts."""
        from moodpo.core.simplex import antithetic_weights

        opposite = antithetic_weights(weights).tolist()
        forged = [
            forge(prompt, self.policy.conditioner, row)
            for prompt, row in zip(prompts, opposite, strict=True)
        ]
        return self.policy.sample(forged, weights, seeds=seeds, sampling=sampling)


def forge(prompt: Prompt, conditioner: Conditioner, weights: Sequence[float]) -> Prompt:
    """The prompt with an instruction for other weights at the end of its last user turn."""
    instruction = conditioner.instruction(weights)
    if isinstance(prompt, str):
        return f"{prompt}\n{instruction}"
    *earlier, last = prompt
    return [*earlier, {**last, "content": f"{last['content']}\n{instruction}"}]
