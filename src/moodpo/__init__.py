"""Multi-Objective Online DPO: one policy, every trade-off, chosen by a weight vector.

Importing this package loads neither torch nor transformers; a name loads what it needs on use.

One optimizer step, in the order of the data; `MOODPOTrainer.get_batch_samples` reads likewise:

 1  prompts      data/prompts.py              load_prompts
 2  fit          data/lengths.py              fit_prompts
 3  weights      training/draws.py            draw_labels
 4  words        conditioning/instruction.py  Conditioner.instruction
 5  tokens       models/chat_templates.py     encode_messages
 6  completions  generation/hf.py             HFGenerator.generate
 7  scores       rewards/panel.py             RewardPanel.score
 8  scale        rewards/normalize.py         Normalizer.normalize
 9  utility      core/scalarization.py        scalarize
10  pair         training/learner.py          Learner.label
11  reference    training/learner.py          Learner.with_reference
12  passes       training/learner.py          Learner.passes
13  loss         training/learner.py          Learner.loss
14  step         training/trainer.py          MOODPOTrainer.training_step

Rooms, and how to add to them: docs/architecture.md.
"""

from typing import TYPE_CHECKING

from moodpo._lazy import lazy

if TYPE_CHECKING:
    from moodpo.core.loss import dpo_loss as dpo_loss
    from moodpo.core.simplex import sample_dirichlet as sample_dirichlet
    from moodpo.core.simplex import simplex_lattice as simplex_lattice
    from moodpo.evaluation.front import hypervolume as hypervolume
    from moodpo.evaluation.front import pareto_front as pareto_front
    from moodpo.evaluation.sweep import evaluate_policy as evaluate_policy
    from moodpo.policy import SteerablePolicy as SteerablePolicy
    from moodpo.rewards import Reward as Reward
    from moodpo.rewards import load_rewards as load_rewards
    from moodpo.training.config import MOODPOConfig as MOODPOConfig
    from moodpo.training.trainer import MOODPOTrainer as MOODPOTrainer

_HOMES = {
    "MOODPOConfig": "training.config",
    "MOODPOTrainer": "training.trainer",
    "Reward": "rewards",
    "SteerablePolicy": "policy",
    "dpo_loss": "core.loss",
    "evaluate_policy": "evaluation.sweep",
    "hypervolume": "evaluation.front",
    "load_rewards": "rewards",
    "pareto_front": "evaluation.front",
    "sample_dirichlet": "core.simplex",
    "simplex_lattice": "core.simplex",
}

__all__ = [
    "MOODPOConfig",
    "MOODPOTrainer",
    "Reward",
    "SteerablePolicy",
    "dpo_loss",
    "evaluate_policy",
    "hypervolume",
    "load_rewards",
    "pareto_front",
    "sample_dirichlet",
    "simplex_lattice",
]

__getattr__ = lazy(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
