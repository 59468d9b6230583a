"""Rewards: K objectives that score raw prompts and completions, as text.

`check_reward_specs` and `list_presets` work without torch; whatever loads a model imports it then.
"""

from typing import TYPE_CHECKING

from moodpo._lazy import lazy

if TYPE_CHECKING:
    from moodpo.rewards.base import Reward as Reward
    from moodpo.rewards.cache import ScoreCache as ScoreCache
    from moodpo.rewards.cache import ScoreIdentity as ScoreIdentity
    from moodpo.rewards.function import FunctionReward as FunctionReward
    from moodpo.rewards.kinds import list_presets as list_presets
    from moodpo.rewards.lexical import LEXICAL as LEXICAL
    from moodpo.rewards.lexical import LexicalReward as LexicalReward
    from moodpo.rewards.load import load_rewards as load_rewards
    from moodpo.rewards.model import ModelReward as ModelReward
    from moodpo.rewards.normalize import Normalizer as Normalizer
    from moodpo.rewards.panel import RewardPanel as RewardPanel
    from moodpo.rewards.presets import PRESETS as PRESETS
    from moodpo.rewards.specs import check_columns as check_columns
    from moodpo.rewards.specs import check_data as check_data
    from moodpo.rewards.specs import check_reward_specs as check_reward_specs
    from moodpo.rewards.specs import rebuild_specs as rebuild_specs

_HOMES = {
    "FunctionReward": "function",
    "LEXICAL": "lexical",
    "LexicalReward": "lexical",
    "ModelReward": "model",
    "Normalizer": "normalize",
    "PRESETS": "presets",
    "Reward": "base",
    "RewardPanel": "panel",
    "ScoreCache": "cache",
    "ScoreIdentity": "cache",
    "check_columns": "specs",
    "check_data": "specs",
    "check_reward_specs": "specs",
    "list_presets": "kinds",
    "load_rewards": "load",
    "rebuild_specs": "specs",
}

__all__ = [
    "LEXICAL",
    "PRESETS",
    "FunctionReward",
    "LexicalReward",
    "ModelReward",
    "Normalizer",
    "Reward",
    "RewardPanel",
    "ScoreCache",
    "ScoreIdentity",
    "check_columns",
    "check_data",
    "check_reward_specs",
    "list_presets",
    "load_rewards",
    "rebuild_specs",
]

__getattr__ = lazy(__name__, _HOMES)
