"""Evaluation: a policy swept over weights → front, steerability, statistics and guards.

`sweep` asks a policy and scores its answers, `analysis` measures them, `results` keeps them; the
other modules are the pure functions between. Nothing here needs torch until a policy is asked.
"""

from moodpo.evaluation.analysis import analyze, check_thresholds
from moodpo.evaluation.front import hypervolume, is_non_dominated, pareto_front
from moodpo.evaluation.plan import SweepPlan
from moodpo.evaluation.results import SweepResult
from moodpo.evaluation.statistics import paired_difference
from moodpo.evaluation.steerability import encoding_sensitivity, steerability_metrics
from moodpo.evaluation.sweep import evaluate_policy, run_sweep
from moodpo.evaluation.weights import default_weights, load_weights_file

__all__ = [
    "SweepPlan",
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
    "run_sweep",
    "steerability_metrics",
]
