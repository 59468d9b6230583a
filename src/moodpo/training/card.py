"""The model card: what a stranger needs to use the policy, written from the run's manifest."""

from __future__ import annotations

from pathlib import Path

from moodpo.conditioning.instruction import Conditioner
from moodpo.manifest import RunManifest

__all__ = ["model_card", "write_model_card"]

_CARD = """\
---
base_model: {base}
library_name: {library}
tags: [moodpo, multi-objective, dpo, steerable]
---

# A steerable policy: {objectives}

One model, trained with Multi-Objective Online DPO (MOODPO), whose trade-off between
{objectives} is chosen at inference by a weight vector in the system instruction.

```python
from moodpo import SteerablePolicy

policy = SteerablePolicy.from_pretrained("{folder}")
policy.generate(["Tell me about your day."], objective_weights={example})
```

or on the command line:

```bash
moodpo generate {folder} --weights {weights} "Tell me about your day."
moodpo evaluate {folder}
```

The weights become this system instruction:

> {instruction}

| objective | reward | revision |
|---|---|---|
{rewards}

- Base model: `{base}`. Reference: {reference}. Scalarization: {scalarization}.
- Loss: {loss_type}, β = {beta}. Weights: Dirichlet({concentration}). Relabeling: {relabel}.
- {steps} optimizer steps. Everything that evaluation and a next iteration need is in `moodpo.json`.
"""


def model_card(manifest: RunManifest, *, folder: str) -> str:
    """Markdown text of the card.

    Args:
        manifest: Of the run.
        folder: How readers will refer to the policy.
    """
    names = manifest.objectives
    weights = [1 / len(names)] * len(names)
    rounded = {name: round(w, 2) for name, w in zip(names, weights, strict=True)}
    rows = [
        f"| {name} | `{reward.get('spec', reward.get('kind', '?'))}` | "
        f"{reward.get('revision') or '–'} |"
        for name, reward in zip(names, manifest.rewards, strict=True)
    ]
    reference = manifest.reference
    return _CARD.format(
        base=manifest.base_model.get("path"),
        library="peft" if manifest.training.get("peft") else "transformers",
        objectives=", ".join(names[:-1]) + f" and {names[-1]}",
        folder=folder,
        example=rounded,
        weights=",".join(f"{n}={w}" for n, w in rounded.items()),
        instruction=Conditioner.from_dict(manifest.conditioning).instruction(weights),
        rewards="\n".join(rows),
        reference=f"{reference.get('kind')} (`{reference.get('path')}`)",
        scalarization=manifest.scalarization,
        steps=manifest.training.get("steps"),
        **{k: manifest.training.get(k) for k in ("loss_type", "beta", "concentration", "relabel")},
    )


def write_model_card(manifest: RunManifest, folder: Path) -> None:
    """Writes the card as the folder's README.md."""
    text = model_card(manifest, folder=str(folder))
    (folder / "README.md").write_text(text, encoding="utf-8")
