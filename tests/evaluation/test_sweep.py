from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import torch

from moodpo.errors import (
    ConfigError,
    DataError,
    GenerationError,
    RewardError,
    RewardSpecError,
    WeightsError,
)
from moodpo.evaluation.journal import fingerprint
from moodpo.evaluation.plan import SweepPlan, prompt_seeds
from moodpo.evaluation.results import SweepResult
from moodpo.evaluation.sweep import SweepProgress, evaluate_policy, run_sweep
from moodpo.generation.base import SamplingConfig
from moodpo.records import Answer

PROMPTS = tuple(f"prompt {n}" for n in range(6))
WEIGHTS = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
SAMPLING = SamplingConfig(max_new_tokens=8)
INFO = {"name": "rule", "path": "rule", "kind": "test", "lineage": {}}


@dataclass
class RulePolicy:
    """Says `yes` as often as the first objective weighs, and a number that its seed chooses."""

    objectives: tuple[str, ...] = ("agree", "digits")
    slope: float = 10.0
    fail_after: int | None = None  # rows
    asked: list[tuple[str, tuple[float, ...], int]] = field(default_factory=list)

    def sample(self, prompts, weights, *, seeds, sampling):
        assert weights.dtype == torch.float64
        assert weights.shape == (len(prompts), 2)
        assert sampling is SAMPLING
        if self.fail_after is not None and len(self.asked) + len(prompts) > self.fail_after:
            raise GenerationError("interrupted")
        rows = list(zip(prompts, map(tuple, weights.tolist()), seeds, strict=True))
        self.asked += rows
        return [f"{'yes ' * round(self.slope * w[0])}{seed % 7}" for _, w, seed in rows]


@dataclass
class CountPanel:
    """Rewards of a text: how many `yes`, and its digit."""

    names: tuple[str, ...] = ("digits", "agree")  # not the policy's order
    calls: list[int] = field(default_factory=list)

    def score(self, prompts, completions, columns=None):
        self.calls.append(len(prompts))
        values = {
            "agree": [float(text.count("yes")) for text in completions],
            "digits": [float(text.split()[-1]) for text in completions],
            "column": [float(value) for value in (columns or {}).get("x", [])],
        }
        return torch.tensor([values[name] for name in self.names]).T


@dataclass
class FixedPanel:
    """Answers what it was told to."""

    answer: torch.Tensor
    names: tuple[str, ...] = ("agree", "digits")

    def score(self, prompts, completions, columns=None):
        return self.answer


def run(policy=None, prompts=PROMPTS, panel=None, **options):
    options = {"weights": WEIGHTS, "sampling": SAMPLING, **options}
    return run_sweep(policy or RulePolicy(), prompts, panel or CountPanel(), **options)


def content(result):
    """All of a result but what a clock wrote."""
    return {k: v for k, v in result.to_dict().items() if k != "timings"}


def test_every_weight_meets_every_prompt():
    policy = RulePolicy()
    result = run(policy, seed=3)
    seeds = prompt_seeds(3, 6)
    assert len(policy.asked) == 18
    expected = {
        (p, tuple(w), s) for p, s in zip(PROMPTS, seeds, strict=True) for w in WEIGHTS.tolist()
    }
    assert set(policy.asked) == expected
    assert result.seeds == seeds
    for w in range(3):
        for n in range(6):
            yes, digit = 10 * WEIGHTS[w, 0], seeds[n] % 7
            assert result.completions[w][n].split().count("yes") == yes
            assert result.rewards[w, n].tolist() == [yes, digit]  # in the policy's order
    assert result.lengths[2].tolist() == [11] * 6  # words


def test_common_random_numbers_leave_only_what_was_asked():
    digits = run().rewards[:, :, 1]
    assert (digits == digits[0]).all()
    assert len(set(digits[0])) > 1


def test_chunks_do_not_matter():
    reference = content(run())
    for chunk_size in (1, 4, 5, 18, 1000):
        policy, panel = RulePolicy(), CountPanel()
        assert content(run(policy, panel=panel, chunk_size=chunk_size)) == reference
        assert max(panel.calls) <= chunk_size
        assert sum(panel.calls) == 18


def test_the_default_weights_are_the_lattice():
    assert run(weights=None).num_weights == 11


def test_the_base_model_gives_the_units():
    result = run(baseline_policy=RulePolicy(slope=4.0))
    base = result.baseline.rewards
    assert base[:, 0, 0].tolist() == [0.0, 2.0, 4.0]
    assert result.normalization.mean.tolist() == pytest.approx(base.mean(axis=(0, 1)).tolist())
    assert result.normalization.std.tolist() == pytest.approx(base.std(axis=(0, 1)).tolist())
    lowest = result.normalize(base.mean(axis=1)).min(axis=0)
    assert result.reference_point.tolist() == pytest.approx((lowest - 1).tolist())
    assert "base model" in result.normalization.source
    assert result.baseline.lengths[2].tolist() == [5] * 6
    assert result.warnings == ()


def test_without_a_base_model_the_units_are_said_to_be_its_own():
    result = run()
    assert result.baseline is None
    assert "the policy itself" in result.normalization.source
    assert any("cannot be compared" in text for text in result.warnings)


def test_a_reference_point_of_the_caller_is_kept():
    assert run(reference_point=[-2.0, -3.0]).reference_point.tolist() == [-2.0, -3.0]


def test_held_out_rewards_are_scored_for_both():
    held_out = CountPanel(names=("digits",))
    result = run(held_out=held_out, baseline_policy=RulePolicy(slope=0.0))
    assert result.held_out.names == ("digits",)
    assert np.array_equal(result.held_out.rewards[..., 0], result.rewards[..., 1])
    assert np.array_equal(result.baseline.held_out_rewards, result.held_out.rewards)


def test_columns_follow_their_prompts():
    panel = CountPanel(names=("agree", "column"))
    policy = RulePolicy(objectives=("agree", "column"))
    result = run(policy, panel=panel, columns={"x": [10, 11, 12, 13, 14, 15]}, chunk_size=4)
    assert (result.rewards[:, :, 1] == np.arange(10, 16)).all()


def test_a_policy_may_count_tokens_and_estimate_its_divergence():
    class Counting(RulePolicy):
        def count_tokens(self, texts):
            return [len(text) for text in texts]

        def kl_to_reference(self, prompts, weights, answers, *, sampling):
            assert all(isinstance(answer, str) for answer in answers)  # as it answered
            return weights[:, 0] * sampling.max_new_tokens

        def describe(self):
            return INFO

    result = run(Counting())
    assert result.lengths[0].tolist() == [1] * 6
    assert result.kl.tolist() == [[0.0] * 6, [4.0] * 6, [8.0] * 6]
    assert result.policy == INFO
    assert result.finished is None


class TokenPolicy(RulePolicy):
    """Says which tokens it sampled: an end for every second answer."""

    def sample(self, prompts, weights, *, seeds, sampling):
        texts = super().sample(prompts, weights, seeds=seeds, sampling=sampling)
        return [
            Answer(text, (1,) * (seed % 5) + (0,) * (seed % 2), bool(seed % 2))
            for text, seed in zip(texts, seeds, strict=True)
        ]

    def count_tokens(self, texts):
        raise AssertionError("the tokens are known")

    def kl_to_reference(self, prompts, weights, answers, *, sampling):
        return [len(answer.token_ids) / 2 for answer in answers]


def test_what_was_sampled_is_what_is_measured():
    result = run(TokenPolicy(), baseline_policy=TokenPolicy(slope=2.0))
    lengths = [seed % 5 + seed % 2 for seed in result.seeds]
    finished = [bool(seed % 2) for seed in result.seeds]
    assert len(set(finished)) == 2
    for phase in (result, result.baseline):
        assert phase.lengths.tolist() == [lengths] * 3
        assert phase.finished.tolist() == [finished] * 3
    assert result.kl.tolist() == [[length / 2 for length in lengths]] * 3
    assert result.completions == run().completions


@pytest.mark.parametrize(("policy", "known"), [(TokenPolicy, True), (RulePolicy, False)])
def test_rewards_get_the_tokens_where_these_are_known(policy, known):
    seen = []

    class Panel(CountPanel):
        def score(self, prompts, completions, columns=None):
            seen.append((columns or {}).get("completion_ids"))
            return super().score(prompts, completions, columns)

    result = run(policy(), panel=Panel(), chunk_size=18)
    ids = [[1] * (seed % 5) + [0] * (seed % 2) for seed in result.seeds for _ in WEIGHTS]
    assert seen == [ids if known else None]


class MixedPolicy(TokenPolicy):
    """Knows the tokens of every second answer."""

    def sample(self, prompts, weights, *, seeds, sampling):
        answers = super().sample(prompts, weights, seeds=seeds, sampling=sampling)
        return [answer if i % 2 else answer.text for i, answer in enumerate(answers)]

    def count_tokens(self, texts):
        return [100 + len(text) for text in texts]

    kl_to_reference = None


def test_lengths_are_counted_only_where_tokens_are_unknown():
    result = run(MixedPolicy(), weights=WEIGHTS[:1])
    ids = [seed % 5 + seed % 2 for seed in result.seeds]
    expected = [ids[n] if n % 2 else 101 for n in range(6)]
    assert result.lengths.tolist() == [expected]
    assert result.finished is None
    assert result.kl is None


def test_conversations_are_stored_by_their_last_turn():
    chat = [{"role": "user", "content": "hello"}]
    result = run(prompts=[chat, "plain"])
    assert result.prompts == ("hello", "plain")
    assert result.data["sha256"] == fingerprint(prompts=[chat, "plain"])


def test_progress_counts_every_row_of_every_phase():
    seen: list[SweepProgress] = []
    run(chunk_size=5, baseline_policy=RulePolicy(), progress=seen.append)
    counts = [(p.phase, p.done, p.total) for p in seen]
    policy = [("policy", done, 18) for done in (5, 10, 15, 18)]
    assert counts == policy + [("baseline", *rest) for _, *rest in policy]


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "journal.jsonl"
    options = {
        "resume_path": path,
        "chunk_size": 4,
        "policy_info": INFO,
        "baseline_info": {**INFO, "name": "base"},
        "held_out": CountPanel(names=("digits",)),
    }
    whole = run(**{**options, "resume_path": None}, baseline_policy=RulePolicy(slope=3.0))
    first = RulePolicy(fail_after=9)
    with pytest.raises(GenerationError, match="interrupted"):
        run(first, **options, baseline_policy=RulePolicy(slope=3.0))
    assert len(first.asked) == 8

    second, base = RulePolicy(), RulePolicy(slope=3.0, fail_after=7)
    with pytest.raises(GenerationError, match="interrupted"):
        run(second, **options, baseline_policy=base)
    assert len(second.asked) == 10
    assert not set(first.asked) & set(second.asked)

    third, rest, seen = RulePolicy(), RulePolicy(slope=3.0), []
    result = run(third, **options, baseline_policy=rest, progress=seen.append)
    assert third.asked == []
    assert len(rest.asked) == 18 - 4
    assert content(result) == content(whole)
    assert (seen[0].done, seen[0].restored) == (8, 4)


def test_a_finished_journal_is_not_sampled_again(tmp_path):
    options = {"resume_path": tmp_path / "journal.jsonl", "policy_info": INFO}
    first = run(**options)
    again = RulePolicy()
    assert content(run(again, **options)) == content(first)
    assert again.asked == []


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"weights": WEIGHTS[::-1]},
        {"prompts": PROMPTS[:5]},
        {"policy_info": {**INFO, "lineage": {"sha256": "other"}}},
        {"columns": {"x": range(6)}},
        {"baseline_policy": RulePolicy(), "baseline_info": INFO},
        {"held_out": CountPanel(names=("digits",))},
    ],
)
def test_another_sweep_starts_anew_with_a_warning(tmp_path, change):
    options = {"resume_path": tmp_path / "journal.jsonl", "policy_info": INFO}
    run(**options)
    policy = RulePolicy()
    with pytest.warns(UserWarning, match="another sweep"):
        result = run(policy, **{**options, **change})
    assert len(policy.asked) == result.num_weights * result.num_prompts
    assert content(result) == content(run(**{**options, **change, "resume_path": None}))


def test_a_journal_needs_to_know_whose_answers_it_keeps(tmp_path):
    with pytest.raises(ConfigError, match="policy_info"):
        run(resume_path=tmp_path / "journal.jsonl")
    with pytest.raises(ConfigError, match="baseline_info"):
        run(
            resume_path=tmp_path / "journal.jsonl",
            policy_info=INFO,
            baseline_policy=RulePolicy(),
        )


class OneShort(RulePolicy):
    def sample(self, prompts, weights, *, seeds, sampling):
        return super().sample(prompts, weights, seeds=seeds, sampling=sampling)[1:]


class Bytes(RulePolicy):
    def sample(self, prompts, weights, *, seeds, sampling):
        texts = super().sample(prompts, weights, seeds=seeds, sampling=sampling)
        return [text.encode() for text in texts]


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"prompts": []}, DataError, "no prompts"),
        ({"prompts": None}, DataError, "prompts are None"),
        ({"prompts": ["a", None]}, DataError, "Prompt 2 of 2 holds no text"),
        ({"prompts": pd.DataFrame({"prompt": PROMPTS})}, DataError, "Pass one column"),
        ({"prompts": [[{"role": "assistant", "content": "a"}]]}, DataError, "prompt 1: .*ends"),
        ({"seed": -1}, ConfigError, "seed must be at least 0"),
        ({"columns": {"x": [1]}}, DataError, "'x' has 1 values for 6"),
        ({"weights": [[1.0, 0.0, 0.0]]}, WeightsError, r"must be \[W, 2\]"),
        ({"panel": CountPanel(names=("agree",))}, RewardSpecError, "objectives are agree, digits"),
        ({"policy": OneShort()}, GenerationError, "17 texts for 18 prompts"),
        ({"policy": Bytes()}, GenerationError, "answered b'.*neither a text nor a moodpo.records"),
        ({"panel": FixedPanel(torch.full((18, 2), math.inf))}, RewardError, "agree answered inf"),
        ({"panel": FixedPanel(torch.zeros(18))}, RewardError, r"shape \[18\]"),
        (
            {"baseline_policy": RulePolicy(objectives=("digits", "agree"))},
            ConfigError,
            "same objectives in the same order",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, error, reason):
    with pytest.raises(error, match=reason):
        run(**options)


@pytest.mark.parametrize("options", [{"num_resamples": 0}, {"confidence": 1.0}])
def test_numbers_of_the_analysis_are_checked_before_the_sweep(options):
    policy = RulePolicy()
    with pytest.raises(ConfigError, match="num_resamples must be at least 1 and confidence"):
        evaluate_policy(policy, PROMPTS, CountPanel(), sampling=SAMPLING, **options)
    assert not policy.asked


def test_a_plan_and_its_options_are_one_way_to_ask():
    plan = SweepPlan(weights=WEIGHTS, sampling=SAMPLING, seed=2, data_source="x")
    asked = run_sweep(RulePolicy(), PROMPTS, CountPanel(), plan, seed=3)
    assert content(asked) == content(run(seed=3, data_source="x"))
    assert plan.seed == 2
    with pytest.raises(TypeError, match="'sede'"):
        evaluate_policy(RulePolicy(), PROMPTS, CountPanel(), plan, sede=3)


def test_sampling_is_the_policys_own_where_nobody_says_otherwise():
    policy = RulePolicy()
    policy.sampling = SAMPLING
    assert content(run(policy, sampling=None)) == content(run())
    with pytest.raises(ConfigError, match="RulePolicy does not say how it samples"):
        run(sampling=None)


def test_containers_with_labels_are_read_by_them_or_in_order():
    shuffled = [3, 5, 0, 1, 4, 2]
    table = pd.DataFrame({"digits": WEIGHTS[:, 1], "agree": WEIGHTS[:, 0]}, index=[7, 8, 9])
    prompts = pd.Series(PROMPTS, index=shuffled)
    columns = {"x": pd.Series([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], index=shuffled)}
    panels = [CountPanel(), CountPanel(names=("column",))]
    result = run(prompts=prompts, weights=table, held_out=panels[1], columns=columns)
    assert content(result)["rewards"] == content(run())["rewards"]
    np.testing.assert_array_equal(result.weights, WEIGHTS)
    assert result.held_out.rewards[0, :, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_reward_without_any_score_does_not_end_the_sweep():
    scores = torch.stack([torch.arange(18.0), torch.full((18,), math.nan)], dim=1)
    result = run(panel=FixedPanel(scores))
    assert np.isnan(result.rewards[..., 1]).all()
    assert np.isfinite(result.reference_point).all()


def test_evaluate_policy_measures_what_the_rule_does(tmp_path):
    result = evaluate_policy(
        RulePolicy(),
        PROMPTS,
        CountPanel(),
        sampling=SAMPLING,
        num_resamples=50,
        weights=WEIGHTS,
        baseline_policy=RulePolicy(slope=0.0),
        data_source="test",
    )
    steering = result.steerability["objectives"]
    assert steering["agree"]["spearman_within_prompt"]["value"] == pytest.approx(1.0)
    assert steering["digits"]["spearman_within_prompt"]["value"] == 0.0
    assert result.steerability["mean"]["value"] == pytest.approx(0.5)
    assert result.metrics["gain_hypervolume"]["value"] > 0
    assert result.metrics["win_rate"][2][0]["value"] == 1.0
    assert result.data["source"] == "test"
    assert {"policy/generate", "baseline/score", "analyze"} <= set(result.timings)
    assert {"moodpo", "torch", "python"} <= set(result.versions)
    result.save(tmp_path / "results.json")
    assert SweepResult.load(tmp_path / "results.json").to_dict() == result.to_dict()
