"""The whole method in one file: Multi-Objective Online DPO without a Trainer.

    python examples/plain_loop.py --steps 20

Reads top to bottom like the paper's algorithm. What differs from it: each scored pair also trains
under the opposite weights, where its winner often flips (antithetic relabeling).

What differs from `moodpo train`: nothing is fast, distributed or saved here, and rewards are
calibrated on prompts without weights, where `moodpo train` draws weights for them as for any step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moodpo.conditioning.instruction import Conditioner
from moodpo.core.loss import dpo_loss
from moodpo.core.pairing import pair_completions
from moodpo.core.scalarization import scalarize
from moodpo.core.simplex import antithetic_weights, sample_dirichlet

Scorer = Callable[[str, str], float]  # (prompt, completion) -> reward, higher is better


def sample_pairs(model, tokenizer, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int):
    """Two sampled completions per prompt: texts and token ids, B x 2."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompt_ids))
    rows = [[pad] * (width - len(ids)) + list(ids) for ids in prompt_ids]  # left-padded
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids]
    output = model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        do_sample=True,
        top_k=0,
        num_return_sequences=2,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
    )[:, width:]  # [B * 2, T], the two completions of a prompt next to each other
    completions = [until_end(row.tolist(), tokenizer.eos_token_id) for row in output]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in completions]
    return pairwise(texts), pairwise(completions)


def until_end(ids: list[int], eos: int) -> list[int]:
    """The completion up to and including its end-of-sequence token, without padding."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def pairwise(values: list) -> list[tuple]:
    """[a, b, c, d] -> [(a, b), (c, d)]."""
    return list(zip(values[::2], values[1::2], strict=True))


def logps(model, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Tensor:
    """Summed log-probability of one completion: a scalar."""
    ids = torch.tensor([[*prompt_ids, *completion_ids]])  # [1, S]
    logits = model(ids).logits[0, len(prompt_ids) - 1 : -1]  # [T, V]: position t predicts t + 1
    targets = torch.tensor(completion_ids)[:, None]  # [T, 1]
    return logits.float().log_softmax(dim=-1).gather(-1, targets).sum()


def step_loss(
    model,
    ref_model,
    tokenizer,
    conditioner: Conditioner,
    scorers: Sequence[Scorer],
    prompts: Sequence[str],
    *,
    generator: torch.Generator,
    mean: Tensor,  # [K] of the reference's own rewards
    std: Tensor,  # [K]
    beta: float = 0.1,
    concentration: float = 0.5,
    max_new_tokens: int = 24,
) -> Tensor | None:
    """One step of the method; None if no pair has a winner."""
    # 1. Weights per prompt, written into the system instruction.
    weights = sample_dirichlet(
        concentration,
        num_samples=len(prompts),
        num_objectives=len(scorers),
        generator=generator,
    )  # [B, K]
    prompt_ids = [
        conditioner.encode(tokenizer, p, w.tolist()) for p, w in zip(prompts, weights, strict=True)
    ]
    # 2. Two completions each, from the conditioned policy.
    with torch.no_grad():
        texts, completion_ids = sample_pairs(model, tokenizer, prompt_ids, max_new_tokens)
    # 3. Every reward on both; rewards see the raw prompt, never the instruction.
    rewards = torch.tensor(
        [
            [[score(prompt, text) for score in scorers] for text in pair]
            for prompt, pair in zip(prompts, texts, strict=True)
        ]
    )  # [B, 2, K]
    normalized = (rewards - mean) / std
    # 4. The better under the weights is chosen; the same pair again under the opposite weights.
    losses = []
    for labels in (weights, antithetic_weights(weights)):
        pairing = pair_completions(scalarize(normalized, labels, "linear"))
        for row in pairing.active.nonzero().flatten().tolist():
            conditioned = conditioner.encode(tokenizer, prompts[row], labels[row].tolist())
            pair = [completion_ids[row][i] for i in pairing.order()[row].tolist()]
            policy_logps = torch.stack([logps(model, conditioned, ids) for ids in pair])
            with torch.no_grad():
                ref_logps = torch.stack([logps(ref_model, conditioned, ids) for ids in pair])
            # 5. DPO against the reference.
            losses.append(dpo_loss(policy_logps[None], ref_logps[None], beta=beta))
    return torch.cat(losses).mean() if losses else None


def train(
    model, ref_model, tokenizer, conditioner, scorers, prompts, *, steps, batch_size, lr, seed=0
) -> list[float]:
    """Runs the method; returns the loss of every step."""
    for each in (model, ref_model):
        each.eval()  # without dropout: a policy that equals its reference has a log-ratio of 0
    torch.manual_seed(seed)  # transformers' generate samples from the global generator
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    mean, std = calibrate(model, tokenizer, scorers, prompts[: 4 * batch_size])
    history = []
    for step in range(steps):
        rows = torch.randint(len(prompts), (batch_size,), generator=generator).tolist()
        loss = step_loss(
            model,
            ref_model,
            tokenizer,
            conditioner,
            scorers,
            [prompts[i] for i in rows],
            generator=generator,
            mean=mean,
            std=std,
        )
        if loss is None:
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
        print(f"step {step + 1}: loss {history[-1]:.4f}")
    return history


@torch.no_grad()
def calibrate(model, tokenizer, scorers, prompts) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each reward on the starting policy's own samples."""
    conditioner = Conditioner(objectives=("any",))  # unused: prompts go in without weights
    ids = [conditioner.encode(tokenizer, prompt, None) for prompt in prompts]
    texts, _ = sample_pairs(model, tokenizer, ids, max_new_tokens=24)
    rewards = torch.tensor(
        [
            [score(prompt, text) for score in scorers]
            for prompt, pair in zip(prompts, texts, strict=True)
            for text in pair
        ]
    )
    return rewards.mean(0), rewards.std(0).clamp_min(1e-6)


def main() -> None:
    """Trains SmolLM2-135M-Instruct, all parameters, on two rewards that disagree."""
    from copy import deepcopy

    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    from moodpo.data.prompts import embedded_prompts, load_prompts
    from moodpo.models.embedded import embedded_policy_path

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-5)
    options = parser.parse_args()
    path = embedded_policy_path()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    sentiment = SentimentIntensityAnalyzer()
    train(
        model,
        deepcopy(model).requires_grad_(False),
        AutoTokenizer.from_pretrained(path),
        Conditioner(objectives=("cheerful", "brief"), weight_format="verbal"),
        [
            lambda prompt, text: sentiment.polarity_scores(text)["compound"],
            lambda prompt, text: -abs(len(text.split()) - 8) / 8,
        ],
        list(load_prompts(str(embedded_prompts("train"))).dataset["prompt"]),
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
    )


if __name__ == "__main__":
    main()
