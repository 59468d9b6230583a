"""The laboratory measures what it says, and the method reaches the optimum where it is known."""

import argparse
import importlib
import json
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def imported(name):
    # The scripts import each other by plain name, as they do when they are run.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module(name)


fronts, laboratory = imported("fronts"), imported("laboratory")
PROBLEMS = laboratory.PROBLEMS
IDEAL = (1.0, 1.0)

rewards = st.floats(0, 1)
points = st.lists(st.tuples(rewards, rewards), min_size=1, max_size=6)


# ---- Fronts ----


def test_igd_plus_is_what_the_nearest_point_lacks():
    front = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    assert fronts.igd_plus([[0.5, 0.5]], front) == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    # Better than the front on the first objective: only the second is lacking.
    assert fronts.igd_plus([[2.0, 0.2]], [[1.0, 0.5]]) == pytest.approx(0.3)
    # A diagonal step lacks the length of the diagonal, and the nearer of two points counts.
    assert fronts.igd_plus([[0.0, 0.0], [0.4, 0.3]], [[0.7, 0.7]]) == pytest.approx(0.5)


@given(points, points, points)
def test_igd_plus_never_grows_with_more_points(reached, more, front):
    distance = fronts.igd_plus(reached, front)
    assert fronts.igd_plus([*reached, *more], front) <= distance
    assert fronts.igd_plus([*reached, *front], front) == 0


def test_shapes_lie_on_the_fronts_that_are_named():
    x = np.random.default_rng(0).dirichlet([1.0, 1.0, 1.0], size=50)
    assert (fronts.convex(x) ** 2).sum(axis=1) == pytest.approx(1)
    r = fronts.concave(x)
    assert (2 * r / (1 + r)).sum(axis=1) == pytest.approx(1)
    assert fronts.gaps(np.eye(2)) == pytest.approx(np.eye(2))


def test_linear_weights_ask_for_their_own_direction_on_the_sphere():
    grid = np.linspace(0, 1, 10_001)
    answers = fronts.convex(np.stack([grid, 1 - grid], axis=1))
    weights = np.array([[1.0, 0.0], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8]])
    asked = fronts.asked_points(answers, weights, "linear", ideal=IDEAL)
    assert asked == pytest.approx(
        weights / np.linalg.norm(weights, axis=1, keepdims=True), abs=0.01
    )


def test_linear_weights_ask_for_corners_of_a_front_that_caves_in_and_chebyshev_for_its_inside():
    grid = np.linspace(0, 1, 10_001)
    answers = fronts.concave(np.stack([grid, 1 - grid], axis=1))
    weights = np.array([[0.6, 0.4], [0.4, 0.6]])
    linear = fronts.asked_points(answers, weights, "linear", ideal=IDEAL)
    assert linear == pytest.approx(np.eye(2))
    even = fronts.asked_points(answers, [[0.5, 0.5]], "chebyshev", ideal=IDEAL)
    assert even == pytest.approx(np.array([[1 / 3, 1 / 3]]), abs=1e-3)


def test_the_typical_answer_is_one_that_was_given():
    corners = [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2
    around = [[0.3, 0.5], [0.5, 0.5], [0.7, 0.5], [0.5, 0.7], [1.0, 0.0]]
    typical = fronts.typical_answers([corners, around])
    assert typical.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_the_share_of_utility_counts_single_answers():
    obtained = [[-1.0, 0.0], [-0.5, -0.5]]
    assert fronts.utility_share(obtained, best=[0.0, -0.5], worst=[-1.0, -1.5]) == pytest.approx(
        (0.5 + 1.0) / 2
    )


def test_the_hypervolume_is_a_share_of_the_optimum():
    assert fronts.hypervolume_ratio(
        [[0.5, 0.5]], [[1.0, 0.5], [0.5, 1.0]], reference_point=[0.0, 0.0]
    ) == pytest.approx(0.25 / 0.75)


# ---- Problems ----


def test_true_rewards_are_those_of_the_position_times_the_share_of_answer_tokens():
    # a is all of the second objective, k all of the first, f half of each; # is waste.
    found = PROBLEMS["convex-2"].true_rewards(["aaaa", "kkkk", "akff", "k##k", "", "####"])
    half = 0.5**0.5
    wanted = [[0, 1], [1, 0], [half, half], [0.5, 0], [0, 0], [0, 0]]
    assert found == pytest.approx(np.array(wanted) - 1)


@pytest.mark.parametrize("name", ["convex-2", "concave-3"])
def test_what_is_attainable_is_what_all_completions_attain(name):
    problem = PROBLEMS[name]
    letters = laboratory.LETTERS[: len(problem.tokens)]
    texts = ["".join(t) for t in combinations_with_replacement(letters, laboratory.LENGTH)]
    found = np.unique(problem.true_rewards(texts).round(9), axis=0)
    assert found == pytest.approx(np.unique(problem.attainable.round(9), axis=0), abs=1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_optimum_is_measured_as_such(name):
    problem = PROBLEMS[name]
    measures = problem.measure(problem.optimum()[:, None])
    assert measures["hypervolume"] == pytest.approx(1)
    assert measures["utility"] == pytest.approx(1)
    assert measures["steerability"] > 0.95
    wasted = problem.measure(np.tile(problem.waste, (len(problem.weights), 1, 1)))
    assert wasted["utility"] == pytest.approx(0)
    assert wasted["hypervolume"] < 0.1


def test_a_coin_flip_between_corners_is_not_taken_for_the_inside_of_a_front():
    problem = PROBLEMS["concave-2"]
    flips = np.array([[0.0, -1.0], [-1.0, 0.0]] * 8)
    measures = problem.measure(np.tile(flips, (len(problem.weights), 1, 1)))
    assert measures["hypervolume"] < 0.4
    mean = np.tile(flips.mean(axis=0), (len(problem.weights), 1, 1))
    assert problem.measure(mean)["hypervolume"] > 0.8  # what the plain mean would have said


def test_training_is_told_of_rewards_with_noise_and_in_other_units():
    judge = laboratory.Judge(PROBLEMS["concave-2-scale"], seed=0)
    first, second = judge.rewards()
    assert first.score(["?"], ["aaaa"]).tolist() == [-1000.0]
    assert second.score(["?"], ["kkkk"]).tolist() == [-1.0]
    assert judge.completions == 1  # each completion is counted once, not once per objective
    noisy = laboratory.Judge(PROBLEMS["convex-2-noise"], seed=0).rewards()[0]
    scores = noisy.score(["?"] * 4000, ["aaaa"] * 4000)
    assert scores.mean().item() == pytest.approx(-1, abs=0.02)
    assert scores.std().item() == pytest.approx(0.1, abs=0.01)


# ---- Policies ----


def test_a_tiny_policy_reads_bars_and_writes_letters():
    tokenizer = laboratory.make_tokenizer()
    conditioner = laboratory.make_conditioner(PROBLEMS["convex-2"])
    ids = conditioner.encode(tokenizer, laboratory.PROMPT, [0.3, 0.7])
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "A###-------B#######---?:"
    assert tokenizer.decode(tokenizer("ak#b")["input_ids"]) == "ak#b"


def run(problem, setting, *changes, seed=0):
    args = laboratory.parse_arguments([*map(str, changes)])
    return laboratory.run(problem, setting, seed, args)


def test_a_short_run_learns_to_follow_weights():
    sizes = ("--steps", 24, "--samples", 8)
    result = run("convex-2", "antithetic", *sizes, "--curve")
    untrained = laboratory.anchors("convex-2", laboratory.parse_arguments([*map(str, sizes)]))[0]
    assert untrained["hypervolume"] < 0.4
    assert untrained["utility"] < 0.6
    assert untrained["steerability"] < 0.5
    assert result["hypervolume"] > 0.6
    assert result["utility"] > 0.8
    assert result["steerability"] > 0.8
    completions = [point["completions"] for point in result["curve"]]
    assert completions[-1] == result["completions"] == 2 * 64 * 24 + 2 * 64  # and calibration
    assert completions == sorted(set(completions))


def test_a_setting_may_bring_arguments_of_the_trainer(monkeypatch):
    drawn = []

    def sampler(problem):
        def draw(seeds, **_):
            drawn.extend(seeds)
            return torch.full((len(seeds), problem.num_objectives), 0.5)

        return draw

    setting = {"relabel": "none", "weight_sampler": sampler}
    monkeypatch.setitem(laboratory.SETTINGS, "even", setting)
    run_even = argparse.Namespace(steps=1, batch_size=8, samples=2, curve=False)
    laboratory.run("convex-2", "even", 0, run_even)
    assert drawn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "setting", "bar"),
    [("convex-2", "antithetic", 0.97), ("concave-2", "chebyshev", 0.95)],
)
def test_a_run_of_minutes_reaches_the_optimum(problem, setting, bar):
    assert run(problem, setting)["hypervolume"] > bar


@pytest.mark.slow
def test_linear_weights_stay_at_the_corners_of_a_front_that_caves_in():
    assert run("concave-2", "antithetic")["hypervolume"] < 0.7


@pytest.mark.slow
def test_units_of_a_reward_do_not_matter():
    plain, scaled = (
        run(name, "antithetic", "--steps", 24) for name in ("convex-2", "convex-2-scale")
    )
    for measure in laboratory.MEASURES:
        assert scaled[measure] == pytest.approx(plain[measure], abs=0.01)


def test_the_command_prints_a_table_and_saves_the_records(tmp_path, capsys):
    path = tmp_path / "laboratory.json"
    sizes = ["--steps", "2", "--batch_size", "8", "--samples", "2"]
    laboratory.main(["--quick", "--seeds", "0", "1", *sizes, "--curve", "--save", str(path)])
    printed = capsys.readouterr().out
    for setting in ("untrained", "optimum", "antithetic"):
        assert f"| convex-2 | {setting} |" in printed
    assert "±" in printed
    records = json.loads(path.read_text())["laboratory"]
    assert [r["setting"] for r in records] == [
        "untrained",
        "untrained",
        "optimum",
        "antithetic",
        "antithetic",
    ]
