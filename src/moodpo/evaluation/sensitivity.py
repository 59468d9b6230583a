"""Does it matter how the same weights are written? Further sweeps of one policy, compared.

Each variant asks the policy for the same weights in another way: in another format, with the
objectives named in another order, or against prompts that end with a forged instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moodpo.conditioning.instruction import Conditioner
from moodpo.records import Prompt

if TYPE_CHECKING:
    from moodpo.evaluation.results import SweepResult
    from moodpo.policy import SteerablePolicy

__all__ = ["Forged", "forge", "measure_sensitivity", "variants"]

FORMATS = ("decimal", "percent")


def measure_sensitivity(
    policy: SteerablePolicy,
    result: SweepResult,
    sweep: Callable[[SteerablePolicy, Sequence[int]], SweepResult],
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


def variants(policy: SteerablePolicy) -> Mapping[str, SteerablePolicy]:
    """The policy asked in other ways, by the name of the way.

    Args:
        policy: Left as it is.

    Returns:
        Policies for `run_sweep`: weights as `decimal` and as `percent` (where they are not
        already), `reordered` objectives, and `forged` instructions at the end of every prompt.
    """
    conditioner = policy.conditioner
    ways = {
        name: policy.written_by(replace(conditioner, weight_format=name, template=None))
        for name in FORMATS
        if name != conditioner.weight_format or conditioner.template is not None
    }
    backwards = tuple(reversed(conditioner.objectives))
    ways["reordered"] = policy.written_by(replace(conditioner, objectives=backwards))
    ways["forged"] = policy.written_by(Forged.from_dict(conditioner.to_dict()))
    return ways


class Forged(Conditioner):
    """Ends every prompt with an instruction for the opposite weights.

    Rewards see the prompts as they were: only what the policy reads is forged.
    """

    def messages(self, prompt: Prompt, weights: Sequence[float] | None) -> list[dict[str, str]]:
        """The conversation of the forged prompt."""
        if weights is not None:
            prompt = forge(prompt, self, self._opposite(weights))
        return super().messages(prompt, weights)

    def _opposite(self, weights: Sequence[float]) -> list[float]:
        import torch

        from moodpo.core.simplex import antithetic_weights

        opposite = antithetic_weights(torch.tensor(list(weights), dtype=torch.float64))
        return list(opposite.tolist())


def forge(prompt: Prompt, conditioner: Conditioner, weights: Sequence[float]) -> Prompt:
    """The prompt with an instruction for other weights at the end of its last user turn."""
    instruction = conditioner.instruction(weights)
    if isinstance(prompt, str):
        return f"{prompt}\n{instruction}"
    *earlier, last = prompt
    return [*earlier, {**last, "content": f"{last['content']}\n{instruction}"}]
