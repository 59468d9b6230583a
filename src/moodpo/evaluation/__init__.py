"""Evaluation: a policy swept over weights → front, steerability, statistics and guards.

`sweep` asks a policy and scores its answers, `analysis` measures them, `results` keeps them; the
other modules are the pure functions between. Nothing here needs torch until a policy is asked.

The functions `sweep.sweep` and `steerability.steerability` keep the names of their modules and are
imported from them.
"""

from moodpo.evaluation.analysis import analyze, check_thresholds
from moodpo.evaluation.front import hypervolume, is_non_dominated, pareto_front
from moodpo.evaluation.results import SweepResult
from moodpo.evaluation.statistics import paired_difference
from moodpo.evaluation.steerability import encoding_sensitivity
from moodpo.evaluation.sweep import evaluate_policy
from moodpo.evaluation.weights import default_weights, load_weights_file

__all__ = [
    "SweepResult",
    "analyze",
    "check_thresholds",
    "default_weights",
    "encoding_sensitivity",
    "evaluate_policy",
    "hypervolume",
    "is_non_dominated",
    "load_weights_file",
    "paired_difference",
    "pareto_front",
]
