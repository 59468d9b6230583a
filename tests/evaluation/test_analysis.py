from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from evaluation.tiny_results import steered, tiny_result
from moodpo.errors import ConfigError
from moodpo.evaluation.analysis import (
    MEASURES,
    analyze,
    check_thresholds,
    measure_names,
    threshold_values,
)
from moodpo.evaluation.results import SweepResult
from moodpo.evaluation.statistics import FRONT_METRICS

FEW = {"num_resamples": 100}


@pytest.fixture(scope="module")
def analyzed():
    rewards, base = steered(40), steered(40, effect=0.0, seed=1)
    return analyze(tiny_result(rewards, base=base), **FEW)


def test_an_analysis_fills_what_a_sweep_leaves_open(analyzed):
    assert analyzed.metrics["hypervolume"]["value"] > 0
    assert len(analyzed.metrics["guard"]["length"]) == 5
    assert set(analyzed.steerability["objectives"]) == {"a", "b"}


def test_an_analysis_survives_the_file(analyzed, tmp_path):
    analyzed.save(tmp_path / "results.json")
    loaded = SweepResult.load(tmp_path / "results.json")
    assert loaded.to_dict() == analyzed.to_dict()
    assert analyze(loaded, **FEW).to_dict() == analyzed.to_dict()


def test_an_analysis_repeats_and_does_not_repeat_itself(analyzed):
    assert analyze(analyzed, **FEW).to_dict() == analyzed.to_dict()


def test_few_prompts_are_said_once():
    result = analyze(tiny_result(steered(5)), **FEW)
    again = analyze(result, **FEW)
    assert sum("Only 5 prompts" in text for text in again.warnings) == 1


def test_front_points_below_the_reference_are_said():
    result = tiny_result(steered(), reference_point=np.array([5.0, -1.0]))
    assert any("add nothing to the hypervolume" in text for text in analyze(result, **FEW).warnings)


def test_an_objective_without_scores_is_said():
    rewards = steered()
    rewards[1, :, 0] = math.nan
    result = analyze(tiny_result(rewards), **FEW)
    assert any("no score at all" in text for text in result.warnings)
    assert math.isnan(result.metrics["hypervolume"]["value"])


def test_thresholds_that_hold_are_silent(analyzed):
    minima = {
        "steerability": 0.1,
        "steerability/a": 0.1,
        "spearman_of_means": 0.5,
        "hypervolume": 1.0,
        "utility_win_rate": 0.5,
        "gain_mean_utility": 0.0,
    }
    assert check_thresholds(analyzed, minima) == []


def test_what_falls_short_is_named_with_its_interval(analyzed):
    value = analyzed.steerability["mean"]["value"]
    [failure] = check_thresholds(analyzed, {"steerability": 0.99, "hypervolume": 0.5})
    assert failure.startswith(f"steerability is {value:.3f} (")
    assert failure.endswith("below the required 0.99.")


def test_the_minimum_itself_is_enough(analyzed):
    value = analyzed.steerability["mean"]["value"]
    assert check_thresholds(analyzed, {"steerability": value}) == []
    assert check_thresholds(analyzed, {"steerability": np.nextafter(value, 1)})


def test_what_could_not_be_computed_fails(analyzed):
    unknown = {"value": math.nan, "low": math.nan, "high": math.nan}
    result = dataclasses.replace(analyzed, metrics={**analyzed.metrics, "hypervolume": unknown})
    [failure] = check_thresholds(result, {"hypervolume": -1e9})
    assert "hypervolume is unknown" in failure


@pytest.mark.parametrize("name", ["sparsity", "maximum_utility_loss", "crd", "gain_sparsity"])
def test_where_less_is_better_there_is_no_minimum(analyzed, name):
    with pytest.raises(ConfigError, match="Less is better"):
        check_thresholds(analyzed, {name: 0.5})
    assert name not in threshold_values(analyzed)


def single_numbers(result):
    """Names of all that was measured and is one number."""
    measured = {**result.steerability, **result.metrics}
    return {n for n, v in measured.items() if isinstance(v, dict) and "value" in v} - {"mean"}


def test_the_table_of_measures_is_what_an_analysis_gives(analyzed):
    alone = analyze(tiny_result(steered(40)), **FEW)
    assert single_numbers(alone) == MEASURES.keys() - {"utility_win_rate"}
    fronts = [f"{of}_{name}" for of in ("baseline", "gain") for name in FRONT_METRICS]
    assert single_numbers(analyzed) == {*MEASURES, *fronts}
    for result, baseline in ((alone, False), (analyzed, True)):
        names = measure_names(result.objectives, baseline=baseline)
        assert list(threshold_values(result)) == names
        assert set(names) - {"steerability", "steerability/a", "steerability/b"} == {
            name
            for name in single_numbers(result)
            if MEASURES[name.removeprefix("gain_").removeprefix("baseline_")] == "more"
        }


@pytest.mark.parametrize("name", ["steering", "points", "guard", "mean", "headline", "objectives"])
def test_unknown_names_are_refused_with_the_known_ones(analyzed, name):
    with pytest.raises(ConfigError, match="Choose from steerability, steerability/a"):
        check_thresholds(analyzed, {name: 0.5})


def test_an_unanalyzed_sweep_has_nothing_to_check():
    with pytest.raises(ConfigError, match="analyze"):
        check_thresholds(tiny_result(steered()), {"steerability": 0.5})
