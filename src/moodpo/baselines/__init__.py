"""Baselines: what the method is measured against, each a policy for `evaluation.sweep`.

- `PromptedPolicy`: the base model, told the weights and never trained;
- `RewardedSoup`: one online-DPO policy per objective, interpolated (Ramé et al. 2023);
- `FixedWeightPolicy`: one online-DPO policy per weight vector, the nearest answers;
- `RewardsInContextPolicy`: fine-tuned on samples under their scores (after Yang et al. 2024).

All share the method's rollout, rewards, trainer and evaluation. `load_baseline` reads what any of
them saved. Importing this package loads neither torch nor transformers; a name does, on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moodpo._lazy import lazy
from moodpo.baselines.record import BaselineRecord, is_baseline
from moodpo.errors import ManifestError

if TYPE_CHECKING:
    from pathlib import Path

    from moodpo.baselines.base import BaselinePolicy as BaselinePolicy
    from moodpo.baselines.fixed import FixedWeightPolicy as FixedWeightPolicy
    from moodpo.baselines.fixed import train_fixed_weights as train_fixed_weights
    from moodpo.baselines.prompting import PromptedPolicy as PromptedPolicy
    from moodpo.baselines.ric import RewardsInContextPolicy as RewardsInContextPolicy
    from moodpo.baselines.ric import train_rewards_in_context as train_rewards_in_context
    from moodpo.baselines.soups import RewardedSoup as RewardedSoup
    from moodpo.baselines.soups import train_soup as train_soup

_HOMES = {
    "BaselinePolicy": "base",
    "FixedWeightPolicy": "fixed",
    "PromptedPolicy": "prompting",
    "RewardedSoup": "soups",
    "RewardsInContextPolicy": "ric",
    "train_fixed_weights": "fixed",
    "train_rewards_in_context": "ric",
    "train_soup": "soups",
}
_KINDS = {
    "prompting": "PromptedPolicy",
    "soups": "RewardedSoup",
    "fixed": "FixedWeightPolicy",
    "ric": "RewardsInContextPolicy",
}

__all__ = [
    "BaselinePolicy",
    "BaselineRecord",
    "FixedWeightPolicy",
    "PromptedPolicy",
    "RewardedSoup",
    "RewardsInContextPolicy",
    "is_baseline",
    "load_baseline",
    "train_fixed_weights",
    "train_rewards_in_context",
    "train_soup",
]


def load_baseline(folder: str | Path, **options: Any) -> BaselinePolicy:
    """Loads any saved baseline.

    Args:
        folder: What a baseline's `save` wrote.
        **options: Of `BaselinePolicy.load`: `base_model`, `device`, `dtype`,
            `generation_batch_size`.

    Raises:
        ManifestError: If the folder holds no baseline, one of an unknown kind, or its base model
            is gone.
    """
    kind = BaselineRecord.load(folder).kind
    if kind not in _KINDS:
        raise ManifestError(
            f"{folder} holds a baseline of the unknown kind {kind!r}; this moodpo knows "
            f"{', '.join(_KINDS)}. Use the moodpo release that wrote it."
        )
    cls: type[BaselinePolicy] = __getattr__(_KINDS[kind])
    return cls.load(folder, **options)


__getattr__ = lazy(__name__, _HOMES)
