"""Rewards-in-Context style fine-tuning: learn what text has which scores, then ask for scores.

Yang et al. 2024, "Rewards-in-Context: Multi-objective Alignment of Foundation Models with Dynamic
Preference Adjustment" (ICML 2024, arXiv 2402.10207), its offline stage: text is scored by all
rewards, the z-scored scores are written into its prompt, and the model is fine-tuned to produce
that text under that prompt. At inference, weights are mapped to the scores to ask for.

What differs: the text is sampled from the base model rather than taken from a data set, so that
this method spends completions as the others do; scores stand in the system turn rather than in
new special tokens; and the online stage (fine-tuning again on the best of its own samples) is left
out. No reward is maximized here: the policy can only pick among what the base model says already.
Shapes: N samples, K objectives.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from moodpo.baselines.base import BaselinePolicy
from moodpo.baselines.members import (
    Setup,
    add_adapter,
    base_rollouts,
    constant_draw,
    member_name,
    silenced,
)
from moodpo.baselines.record import BaselineRecord
from moodpo.conditioning.instruction import Conditioner
from moodpo.conditioning.tokens import encode_conversation
from moodpo.core.tokens import TokenBatch, collate_sequences
from moodpo.errors import ConfigError, RewardError
from moodpo.generation.tokens import padding_token_id
from moodpo.models.fast import fuse_lora
from moodpo.models.logps import completion_logps, head_is_linear
from moodpo.records import Prompt, RolloutBatch, TokenIds
from moodpo.rewards.normalize import Normalizer
from moodpo.training.dropout import Dropouts
from moodpo.training.rollout import NUM_COMPLETIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "MAPPINGS",
    "RewardsInContextPolicy",
    "ScoredSamples",
    "desired_scores",
    "score_instruction",
    "train_rewards_in_context",
]

TAIL = 0.02


def _l2(weights: Sequence[float]) -> list[float]:
    norm = sum(w * w for w in weights) ** 0.5
    return [w / norm for w in weights]


def _linf(weights: Sequence[float]) -> list[float]:
    top = max(weights)
    return [1.0 if w == top else min(len(weights) * w, 1.0) for w in weights]


MAPPINGS: Mapping[str, Callable[[Sequence[float]], list[float]]] = {"l2": _l2, "linf": _linf}
"""Weights → how far to go from the lowest to the highest score, in [0, 1] per objective."""


def desired_scores(
    weights: Sequence[float], low: Sequence[float], high: Sequence[float], *, mapping: str = "l2"
) -> list[float]:
    """RiC's preference-to-reward mapping: the scores to ask for under given weights.

    `score_k = low_k + z_k · (high_k − low_k)`, where `z` is how far along its range each objective
    is asked to go. RiC abstracts the front of reachable scores as a norm ball: `z` maximizes
    `Σ_k w_k z_k` over `‖z‖_p ≤ 1`.

    - `l2` (p = 2, what the authors' evaluation uses): `z = w / ‖w‖₂`, by Cauchy–Schwarz. A corner
      asks for the highest score of one objective and the lowest of the others; even weights of
      two objectives ask for 71 % of both ranges.
    - `linf` (the authors' piecewise linear variant for p → ∞): `z_k = 1` for the largest weight
      and `min(K · w_k, 1)` for the others.

    Args:
        weights: K values on the simplex.
        low: K lowest scores to ask for.
        high: K highest scores to ask for.
        mapping: `l2` or `linf`.

    Returns:
        K scores.
    """
    z = MAPPINGS[mapping](weights)
    return [a + share * (b - a) for share, a, b in zip(z, low, high, strict=True)]


def score_instruction(scores: Sequence[float], objectives: Sequence[str]) -> str:
    """The system instruction: one decimal per score, as in RiC.

    Args:
        scores: K z-scores.
        objectives: K names.
    """
    # Adding 0.0 turns the negative zero that rounding leaves into a plain one.
    parts = [f"{n} {round(s, 1) + 0.0:.1f}" for n, s in zip(objectives, scores, strict=True)]
    return f"Scores to reach: {', '.join(parts)}."


def encode_with_scores(
    conditioner: Conditioner,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    scores: Sequence[float],
) -> TokenIds:
    """Token ids of a prompt that asks for scores, in place of one that tells weights.

    Args:
        conditioner: Names the objectives and frames prompts.
        tokenizer: The model's.
        prompt: The raw prompt; its own system turn, if any, follows the scores.
        scores: K z-scores.
    """
    messages = _ask_for(conditioner.messages(prompt, None), scores, conditioner.objectives)
    return encode_conversation(tokenizer, messages, conditioner.chat_template_kwargs)


def _ask_for(
    turns: list[dict[str, str]], scores: Sequence[float], objectives: Sequence[str]
) -> list[dict[str, str]]:
    text = score_instruction(scores, objectives)
    if turns[0]["role"] == "system":
        text = f"{text}\n\n{turns.pop(0)['content']}"
    return [{"role": "system", "content": text}, *turns]


@dataclass(frozen=True, kw_only=True)
class Scores(Conditioner):
    """Asks for the scores that weights are mapped to.

    Attributes:
        low: K lowest z-scores to ask for.
        high: K highest.
        mapping: `l2` or `linf`.
    """

    low: Sequence[float]
    high: Sequence[float]
    mapping: str

    def at(self, weights: Sequence[float]) -> list[float]:
        """The K z-scores to ask for under weights `[K]`."""
        return desired_scores(weights, self.low, self.high, mapping=self.mapping)

    def messages(self, prompt: Prompt, weights: Sequence[float] | None) -> list[dict[str, str]]:
        """The conversation, the scores first as a system turn."""
        turns = super().messages(prompt, None)
        return turns if weights is None else _ask_for(turns, self.at(weights), self.objectives)


class RewardsInContextPolicy(BaselinePolicy):
    """One adapter that reads scores; weights are mapped to scores.

    See `BaselinePolicy` for the arguments. `record.details` holds `low` and `high` `[K]` (z-scores
    that are asked for at most), `mapping`, and the `normalizer` of the raw scores.
    """

    kind = "ric"
    title = "Rewards-in-Context"

    @classmethod
    def written(cls, record: BaselineRecord) -> Scores:
        """Scores in place of weights."""
        asked = {name: record.details[name] for name in ("low", "high", "mapping")}
        return Scores(**{**record.conditioning, **asked})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSamples:
    """What the base model says, and how it scores."""

    prompts: Sequence[Prompt]  # N raw prompts
    completion_ids: Sequence[TokenIds]  # N
    rewards: Tensor  # [N, K] raw, no NaN

    @classmethod
    def of(cls, rollouts: Iterable[RolloutBatch]) -> ScoredSamples:
        """The samples of rollouts that every reward could score.

        Raises:
            RewardError: If there is none.
        """
        prompts: list[Prompt] = []
        completion_ids: list[TokenIds] = []
        rewards: list[Tensor] = []
        for rollout in rollouts:
            scored = rollout.rewards.flatten(1, 2)  # [B, G, K]
            rows = zip(rollout.prompts, rollout.candidates, scored, strict=True)
            for prompt, completions, each in rows:
                for completion, scores in zip(completions, each, strict=True):
                    if not scores.isnan().any():
                        prompts.append(prompt)
                        completion_ids.append(completion.token_ids)
                        rewards.append(scores)
        if not rewards:
            raise RewardError(
                "No sample has a score from every reward, so there is nothing to learn from. "
                "Check the rewards on these prompts."
            )
        return cls(prompts=prompts, completion_ids=completion_ids, rewards=torch.stack(rewards))


def train_rewards_in_context(
    model: str | nn.Module,
    *,
    num_completions: int,
    mapping: str = "l2",
    tail: float = TAIL,
    keep_sampling: Callable[[], bool] = lambda: True,
    **options: Any,
) -> RewardsInContextPolicy:
    """Samples from the base model, scores, and fine-tunes on score-conditioned samples.

    Args:
        model: The base model, or its path; an adapter is added to it in place.
        num_completions: Sampled in all, two per prompt.
        mapping: How weights become scores: see `desired_scores`.
        tail: The lowest and highest score that is asked for are these quantiles from either end
            of the samples' scores. 0 is RiC's own, the extremes; with few samples those were seen
            once, so the default (ours) stays where there is data.
        keep_sampling: Asked before each rollout of 64 prompts but the first; False ends sampling.
        **options: Of `Setup.of`: `reward_funcs`, `args`, `train_dataset`, `peft_config`, … Here
            `args.max_steps` (if above 0) or `args.num_train_epochs` counts fine-tuning over the
            samples, and a batch holds `args.per_device_train_batch_size` of them.

    Returns:
        The policy, ready for a sweep or `save`.

    Raises:
        ConfigError: If the mapping is unknown or a number is out of range.
        RewardError: If no sample could be scored.
    """
    if mapping not in MAPPINGS or num_completions < 2 or not 0 <= tail < 0.5:
        raise ConfigError(
            f"mapping must be one of {', '.join(MAPPINGS)}, num_completions at least 2 and tail in "
            f"[0, 0.5); got {mapping!r}, {num_completions} and {tail}."
        )
    started = time.perf_counter()
    setup = Setup.of(model, **options)
    samples, sampled = _sample(setup, num_completions, keep_sampling)
    normalizer = setup.normalizer or _calibrated(samples)
    scores = normalizer.normalize(samples.rewards)  # [N, K]
    trained, steps = _fine_tune(setup, samples, scores)
    low, high = torch.quantile(scores.double(), torch.tensor([tail, 1 - tail]).double(), dim=0)
    asked = {"low": low.tolist(), "high": high.tolist(), "mapping": mapping}
    seconds = round(time.perf_counter() - started, 3)
    return setup.policy(
        RewardsInContextPolicy,
        trained,
        adapters=[member_name(0)],
        details={**asked, "normalizer": normalizer.state_dict()},
        training={"completions": sampled, "steps": steps, "seconds": seconds},
    )


def _calibrated(samples: ScoredSamples) -> Normalizer:
    normalizer = Normalizer("calibrate", samples.rewards.shape[1])
    normalizer.calibrate(samples.rewards)
    return normalizer


def _sample(
    setup: Setup, num_completions: int, keep_sampling: Callable[[], bool]
) -> tuple[ScoredSamples, int]:
    """Scored samples of the base model, asked with the prompt alone, and how many were drawn."""
    K = len(setup.panel)
    collector = setup.collector(silenced(setup.conditioner), constant_draw([1 / K] * K))
    rollouts = []
    for rollout in base_rollouts(
        setup, collector, prompts=num_completions // NUM_COMPLETIONS, key=(setup.args.seed, "ric")
    ):
        rollouts.append(rollout)
        if not keep_sampling():
            break
    return ScoredSamples.of(rollouts), sum(map(len, rollouts)) * NUM_COMPLETIONS


def _fine_tune(setup: Setup, samples: ScoredSamples, scores: Tensor) -> tuple[nn.Module, int]:
    """The PEFT model after fine-tuning, and its optimizer steps."""
    name, args = member_name(0), copy.copy(setup.args)
    args.save_strategy = "no"
    args.output_dir = f"{args.output_dir}/{name}"
    model = add_adapter(
        setup.model, setup.peft_config, name, seed=args.seed, dropout=not args.disable_dropout
    )
    fuse_lora(model)
    rows = [
        (encode_with_scores(setup.conditioner, setup.tokenizer, prompt, row), completion)
        for prompt, completion, row in zip(
            samples.prompts, samples.completion_ids, scores.tolist(), strict=True
        )
    ]
    trainer = _FineTuner(
        model=model,
        args=args,
        data_collator=_Collator(padding_token_id(setup.tokenizer, model)),
        train_dataset=rows,
        processing_class=setup.tokenizer,
        callbacks=list(setup.callbacks),
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model, trainer.state.global_step


class _Collator:
    """(prompt ids, completion ids) → one `TokenBatch`."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, rows: Sequence[tuple[TokenIds, TokenIds]]) -> dict[str, TokenBatch]:
        prompts, completions = zip(*rows, strict=True)
        return {"tokens": collate_sequences(prompts, completions, pad_token_id=self._pad)}


class _FineTuner(Trainer):  # type: ignore[misc]
    """Cross-entropy on completion tokens, without the logits of the prompt's."""

    @functools.cached_property
    def linear_head(self) -> bool:
        """Tried once: it takes two forward passes."""
        return head_is_linear(self.model)

    @functools.cached_property
    def dropouts(self) -> Dropouts:
        """What `disable_dropout` switches off."""
        return Dropouts(self.model)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `transformers.Trainer.training_step`, without dropout where the settings say so."""
        with self.dropouts.off() if self.args.disable_dropout else nullcontext():
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, TokenBatch],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean negative log-probability of the completion tokens of one batch, in nats."""
        tokens = inputs["tokens"].to(self.args.device)
        scored = completion_logps(model, tokens, linear_head=self.linear_head)
        loss = -scored.logps.sum() / len(tokens.targets)
        return (loss, {}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, TokenBatch]) -> int:
        """Estimate for `total_flos`: 6 operations per parameter and token (Kaplan et al. 2020)."""
        operations: int = 6 * self.model.num_parameters() * inputs["tokens"].input_ids.numel()
        return operations
