"""The public surface: names, laziness, signatures."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import moodpo

NAMES = [
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


def test_exactly_these_names():
    assert moodpo.__all__ == NAMES == sorted(NAMES)
    assert set(NAMES) <= set(dir(moodpo))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_resolves_and_is_documented(name):
    value = getattr(moodpo, name)
    assert value is getattr(moodpo, name)
    assert value.__name__ == name
    assert value.__doc__


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = moodpo.nope


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, moodpo\n"
        "print([n for n in ('torch', 'transformers', 'numpy', 'trl') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            "MOODPOTrainer",
            "model ref_model reward_funcs args train_dataset eval_dataset processing_class "
            "peft_config",
        ),
        ("load_rewards", "specs"),
        ("dpo_loss", "policy_logps ref_logps"),
        ("evaluate_policy", "policy prompts panel"),
        ("sample_dirichlet", "concentration"),
        ("simplex_lattice", "num_objectives divisions"),
    ],
)
def test_leading_parameters_are_a_promise(function, parameters):
    expected = parameters.split()
    found = list(inspect.signature(getattr(moodpo, function)).parameters)
    assert found[: len(expected)] == expected


def test_a_policy_is_asked_by_keyword():
    signature = inspect.signature(moodpo.SteerablePolicy.generate)
    assert list(signature.parameters)[:3] == ["self", "prompts", "objective_weights"]
    for name, default in {"max_new_tokens": None, "temperature": None, "seed": 0}.items():
        assert signature.parameters[name].default == default
        assert signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_fronts_name_their_reference_point():
    signature = inspect.signature(moodpo.hypervolume)
    assert signature.parameters["points"].kind is inspect.Parameter.POSITIONAL_ONLY
    assert signature.parameters["reference_point"].kind is inspect.Parameter.KEYWORD_ONLY
