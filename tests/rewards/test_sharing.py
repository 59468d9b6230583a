from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from moodpo.errors import RewardError
from moodpo.rewards import ModelReward, RewardPanel, ScoreCache, load_rewards, model
from moodpo.rewards.checkpoint import Checkpoint
from moodpo.rewards.sharing import equal_backbones, once, shared_work, tokenizer_fingerprint
from tiny_checkpoints import build_tiny_gpt2_reward, tiny_gpt2_tokenizer

PROMPTS = ["Hi", "Hi", "Tell me a joke about the penguin.", "Hi"]
TEXTS = ["good", "The ice. It is good.", "good", "good"]


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many forward passes ran, and how many batches of text were tokenized."""
    found = {"forward": 0, "tokenize": 0}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **kwargs: Any) -> Any:
            found[name] += 1
            return function(*args, **kwargs)

        return spy

    monkeypatch.setattr(Checkpoint, "_forward", counted("forward", Checkpoint._forward))
    monkeypatch.setattr(model, "encode_inputs", counted("tokenize", model.encode_inputs))
    return found


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A decoder, the same one under another head, and one whose backbone differs in one weight."""
    root = tmp_path_factory.mktemp("heads")
    first = build_tiny_gpt2_reward(root / "first", seed=7)
    second = Path(shutil.copytree(first, root / "second"))
    third = Path(shutil.copytree(first, root / "third"))
    weights = load_file(first / "model.safetensors")
    turned = {**weights, "score.weight": -2 * weights["score.weight"].flip(1)}
    save_file(turned, second / "model.safetensors", metadata={"format": "pt"})
    weights["transformer.ln_f.bias"][3] += 0.5
    save_file(weights, third / "model.safetensors", metadata={"format": "pt"})
    return first, second, third


def alone(specs: list[str], **kwargs: Any) -> Tensor:
    """Scores `[N, K]` of rewards that know nothing of each other."""
    rewards = [load_rewards([spec], **kwargs)[0] for spec in specs]
    return torch.stack([reward.score(PROMPTS, TEXTS) for reward in rewards], dim=-1)


def together(specs: list[str], **kwargs: Any) -> RewardPanel:
    return RewardPanel(load_rewards(specs, **kwargs), cache=ScoreCache(0))


# --- once -----------------------------------------------------------------------------------------


def test_once_computes_once_within_shared_work_and_never_outside() -> None:
    calls: list[str] = []

    def compute() -> str:
        calls.append("asked")
        return "result"

    for _ in range(2):
        assert once(("key", [1]), compute) == "result"
    assert len(calls) == 2
    with shared_work():
        for _ in range(3):
            assert once(("key", [1]), compute) == "result"
        once(("key", [2]), compute)
    assert len(calls) == 4
    with shared_work():
        once(("key", [1]), compute)
    assert len(calls) == 5


def test_a_failure_is_not_remembered_and_inner_work_leaves_the_outer_alone() -> None:
    def fail() -> int:
        raise ValueError("no")

    with shared_work():
        with pytest.raises(ValueError, match="no"):
            once(("key",), fail)
        assert once(("key",), lambda: 1) == 1
        with shared_work():
            assert once(("key",), lambda: 2) == 2
        assert once(("key",), lambda: 3) == 1


# --- one checkpoint -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_scores_of_one_checkpoint_take_one_forward_pass(
    checkpoints: dict[str, Path], counts: dict[str, int], order: tuple[int, ...]
) -> None:
    path = checkpoints["faithful"]
    specs = [
        f"yes={path}#like=faithful",
        f"no={path}#like=faithful&label=0",
        f"margin={path}#like=faithful&score=margin",
    ]
    specs = [specs[i] for i in order]
    expected = alone(specs)
    counts.update(forward=0, tokenize=0)
    assert torch.equal(together(specs).score(PROMPTS, TEXTS), expected)
    assert counts == {"forward": 1, "tokenize": 1}


def test_other_inputs_of_one_checkpoint_take_their_own(
    checkpoints: dict[str, Path], counts: dict[str, int]
) -> None:
    path = checkpoints["faithful"]
    specs = [
        f"whole={path}#like=faithful",
        f"first={path}#like=faithful&response=first-sentence",
        f"plain={path}#like=faithful&input=response",
        f"short={path}#like=faithful&max_tokens=12",
    ]
    expected = alone(specs)
    counts.update(forward=0, tokenize=0)
    assert torch.equal(together(specs).score(PROMPTS, TEXTS), expected)
    assert counts == {"forward": 4, "tokenize": 4}


def test_the_next_question_computes_anew(
    checkpoints: dict[str, Path], counts: dict[str, int]
) -> None:
    """A model that was passed as an object may have been trained between two questions."""
    path = checkpoints["humor"]
    classifier = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    rewards = load_rewards(
        [classifier, classifier],
        names=["joke#label=1", "serious#label=0"],
        processing_classes=[tokenizer, tokenizer],
    )
    panel = RewardPanel(rewards)
    before = panel.score(["Hi"], ["Ok."])
    assert counts == {"forward": 1, "tokenize": 1}
    classifier.classifier.bias.data += torch.tensor([1.0, 2.0])
    after = panel.score(["Hi"], ["Ok."])
    torch.testing.assert_close(after, before + torch.tensor([2.0, 1.0]))
    assert counts == {"forward": 2, "tokenize": 2}


def test_an_error_is_still_of_the_reward_that_met_it(checkpoints: dict[str, Path]) -> None:
    path = checkpoints["faithful"]
    specs = [f"no={path}#like=faithful&label=0", f"yes={path}#like=faithful"]
    rewards = load_rewards(specs)
    assert isinstance(rewards[0], ModelReward)
    classifier = rewards[0].checkpoint.model
    bias = classifier.classification_head.out_proj.bias
    bias[1] = torch.nan  # of the second reward's label alone
    with pytest.raises(RewardError, match="'yes' answered NaN for row 0"):
        RewardPanel(rewards).score(PROMPTS, TEXTS)
    classifier.model = None
    with pytest.raises(RewardError, match="'no' failed while scoring: TypeError"):
        RewardPanel(rewards).score(PROMPTS, TEXTS)


# --- one backbone, several heads ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_on_equal_backbones_take_one_forward_pass(
    heads: tuple[Path, ...], counts: dict[str, int], dtype: torch.dtype
) -> None:
    specs = [f"{path.name}={path}#like=helpful" for path in heads]
    expected = alone(specs, dtype=dtype)
    assert not torch.equal(expected[:, 0], expected[:, 1])
    panel = together(specs, dtype=dtype, batch_size=2)
    counts.update(forward=0, tokenize=0)
    scores = panel.score(PROMPTS, TEXTS)
    assert counts == {"forward": 4, "tokenize": 1}  # 2 batches, of 2 backbones
    tolerance = 1e-5 if dtype == torch.float32 else 0.1  # other batches than those of `alone`
    torch.testing.assert_close(scores, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(together(specs, dtype=dtype).score(PROMPTS, TEXTS), expected)


def test_equal_backbones_are_one_module_and_heads_stay_apart(heads: tuple[Path, ...]) -> None:
    rewards = load_rewards([f"{path.name}={path}#like=helpful" for path in heads])
    first, second, third = (r.checkpoint for r in rewards if isinstance(r, ModelReward))
    assert first.backbone is second.backbone is not third.backbone
    assert first.model.score is not second.model.score
    assert not equal_backbones(first.model, third.model)


def test_backbones_of_other_rules_or_precision_are_not_equal(heads: tuple[Path, ...]) -> None:
    def load(path: Path = heads[0], **kwargs: Any) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(path, **kwargs)

    assert equal_backbones(load(), load(heads[1]))
    assert not equal_backbones(load(), load(layer_norm_epsilon=1e-3))
    assert not equal_backbones(load(), load(dtype=torch.bfloat16))
    assert not equal_backbones(load(), load(attn_implementation="eager"))
    assert equal_backbones(load(), load(id2label={0: "other"}, label2id={"other": 0}))


def test_encoders_keep_their_own_backbone(
    checkpoints: dict[str, Path], tmp_path: Path, counts: dict[str, int]
) -> None:
    twin = shutil.copytree(checkpoints["humor"], tmp_path / "twin")
    specs = [f"a={checkpoints['humor']}#like=humor", f"b={twin}#like=humor"]
    scores = together(specs).score(PROMPTS, TEXTS)
    assert torch.equal(scores[:, 0], scores[:, 1])
    assert counts == {"forward": 2, "tokenize": 1}


# --- one tokenizer --------------------------------------------------------------------------------


def test_models_with_equal_tokenizers_tokenize_once(
    checkpoints: dict[str, Path], counts: dict[str, int]
) -> None:
    specs = [f"{name}={checkpoints[name]}#like={name}" for name in checkpoints]
    expected = alone(specs)
    counts.update(forward=0, tokenize=0)
    panel = RewardPanel(load_rewards(specs))
    assert torch.equal(panel.score(PROMPTS, TEXTS), expected)
    assert counts == {"forward": 6, "tokenize": 5}  # helpful and harmless are one format
    assert torch.equal(panel.score(PROMPTS, TEXTS), expected)
    assert counts == {"forward": 6, "tokenize": 5}


def test_conversations_are_tokenized_once_and_told_apart(tmp_path: Path) -> None:
    tokenizer = tiny_gpt2_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    paths = [build_tiny_gpt2_reward(tmp_path / f"chat{seed}", seed=seed) for seed in (1, 2)]
    for path in paths:
        tokenizer.save_pretrained(path)
    turns = [{"role": "user", "content": "Before"}, {"role": "assistant", "content": "Yes"}]
    ask = {"role": "user", "content": "Hi"}
    prompts = ["Hi", [*turns, ask], [ask]]
    rewards = load_rewards([str(path) for path in paths])
    expected = torch.stack([r.score(prompts, ["Ok."] * 3) for r in rewards], dim=-1)
    assert torch.equal(RewardPanel(rewards).score(prompts, ["Ok."] * 3), expected)
    assert expected[0, 0] == expected[2, 0] != expected[1, 0]


def test_a_fingerprint_is_of_the_rules_and_not_of_the_last_call() -> None:
    first, second = tiny_gpt2_tokenizer(), tiny_gpt2_tokenizer()
    fingerprint = tokenizer_fingerprint(first)
    assert fingerprint == tokenizer_fingerprint(second)
    second(["a text"], truncation=True, max_length=3, stride=1)
    assert second.backend_tokenizer.truncation is not None
    assert fingerprint == tokenizer_fingerprint(second)
    second.truncation_side = "left"
    assert fingerprint != tokenizer_fingerprint(second)
    third = tiny_gpt2_tokenizer()
    third.add_tokens(["penguin"])
    assert fingerprint != tokenizer_fingerprint(third)
    fourth = tiny_gpt2_tokenizer()
    fourth.chat_template = "{{ messages }}"
    assert fingerprint != tokenizer_fingerprint(fourth)
    assert tokenizer_fingerprint(object()) is None  # type: ignore[arg-type]


def test_tokenizers_of_the_caller_are_shared_by_identity_alone(
    heads: tuple[Path, ...], counts: dict[str, int]
) -> None:
    models = [AutoModelForSequenceClassification.from_pretrained(path) for path in heads[:2]]
    one = tiny_gpt2_tokenizer()
    for tokenizers, batches in (([one, one], 1), ([one, tiny_gpt2_tokenizer()], 2)):
        counts.update(forward=0, tokenize=0)
        rewards = load_rewards(models, names=["a", "b"], processing_classes=tokenizers)
        RewardPanel(rewards).score(PROMPTS, TEXTS)
        assert counts == {"forward": 2, "tokenize": batches}
