from types import SimpleNamespace

from moodpo.conditioning.instruction import Conditioner
from moodpo.generation.base import SamplingConfig
from moodpo.policy import SteerablePolicy
from moodpo.protocols import as_policy
from tiny_policies import tiny_model, tiny_tokenizer

SAMPLING = SamplingConfig(max_new_tokens=4)


def test_a_complete_policy_is_returned_as_it_is():
    conditioner = Conditioner(objectives=("a", "b"))
    policy = SteerablePolicy(tiny_model(), tiny_tokenizer(), conditioner)
    assert as_policy(policy) is policy


def test_what_a_policy_leaves_out_has_a_default():
    def sample(prompts, weights, *, seeds, sampling):
        return list(prompts)

    policy = as_policy(SimpleNamespace(objectives=("a",), sample=sample, kl_to_reference=None))
    assert policy.objectives == ("a",)
    assert policy.sample(["x"], None, seeds=[0], sampling=None) == ["x"]
    assert policy.count_tokens(["two words", ""]) == [2, 0]
    assert policy.kl_to_reference(["x"], None, ["y"], sampling=None) is None
    assert policy.sampling is None
    assert policy.describe() == {
        "name": "SimpleNamespace",
        "kind": "SimpleNamespace",
        "lineage": {},
    }


def test_what_a_policy_has_is_its_own():
    class Own:
        objectives = ("a", "b")
        sampling = SAMPLING

        def __init__(self):
            self.asked = 0

        def sample(self, prompts, weights, *, seeds, sampling):
            self.asked += 1
            return ["y"]

        def describe(self):
            return {"name": "mine"}

    own = Own()
    policy = as_policy(own)
    assert policy.sample(["x"], None, seeds=[0], sampling=None) == ["y"]
    assert own.asked == 1
    assert (policy.sampling, policy.describe()) == (SAMPLING, {"name": "mine"})
