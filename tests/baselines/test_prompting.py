import torch

from baselines.tiny_baselines import GREEDY, NAMES, PROMPTS, SAMPLED, ask, load_base
from moodpo.baselines import PromptedPolicy, load_baseline
from moodpo.conditioning.instruction import Conditioner
from moodpo.policy import SteerablePolicy
from tiny_policies import tiny_tokenizer

CONDITIONER = Conditioner(objectives=NAMES, weight_format="verbal")


def make(folder):
    return PromptedPolicy.from_model(
        load_base(folder / "base"), tiny_tokenizer(), CONDITIONER, sampling=GREEDY
    )


def test_prompting_is_the_untrained_policy_under_the_same_instruction(tmp_path):
    policy = make(tmp_path)
    served = SteerablePolicy.from_pretrained(tmp_path / "base", conditioner=CONDITIONER)
    rows = [(1.0, 0.0), (0.3, 0.7), (0.0, 1.0)]
    for sampling in (GREEDY, SAMPLED):
        theirs = served.sample(PROMPTS[:3], torch.tensor(rows), seeds=range(3), sampling=sampling)
        assert ask(policy, *rows, sampling=sampling) == theirs
    texts = [
        policy.sample([PROMPTS[0]], torch.tensor([w]), seeds=[0], sampling=SAMPLED) for w in rows
    ]
    assert texts[0] != texts[2]  # the instruction is read


def test_prompting_survives_its_file(tmp_path):
    policy = make(tmp_path)
    policy.save(tmp_path / "saved")
    loaded = load_baseline(tmp_path / "saved")
    assert type(loaded) is PromptedPolicy
    assert loaded.conditioner == CONDITIONER
    assert ask(loaded, (0.3, 0.7)) == ask(policy, (0.3, 0.7))
    assert not (tmp_path / "saved" / "adapters").exists()
