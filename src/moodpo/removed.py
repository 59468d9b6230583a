"""Settings that earlier versions had: what to use instead of each, said for one release.

What proved useless is gone; the measurements are in `benchmarks/LOG.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moodpo.errors import ConfigError

__all__ = ["REMOVED", "refuse_removed"]

REMOVED: Mapping[str, str] = {
    "pairing": "The weighted utility decides a pair; votes per objective steered no better. "
    "Leave it out.",
    "warmup_steps_sft": "Imitating winners first steered no further. Start from an SFT model, or "
    "add their likelihood with rpo_alpha.",
    "pair_fraction": "All pairs are trained: the clearest alone steered less per completion. For "
    "more and smaller steps use a smaller per_device_train_batch_size.",
    "tokens_per_pass": "Micro-batches share passes by themselves under activation_checkpointing. "
    "Leave it out.",
    "async_rollouts": "On one machine there is nothing to gain; it comes back with a generation "
    "server. Leave it out.",
    "async_rollout_device": "It went with async_rollouts. Leave it out.",
    "signed_objectives": "No language model was ever trained with negative weights. To ask for "
    "less of an objective, add one that pulls the other way, as brevity does of detail.",
    "lower_bounds": "In the laboratory a policy kept a bound that its weights alone would not keep "
    "in less than half of its answers. Raise the objective's weight; moodpo evaluate reports from "
    "which weight on answers reach what you need.",
    "bound_probability": "It went with lower_bounds. Raise an objective's weight instead.",
    "weight_sampler": "Weights are drawn from a Dirichlet: corners, stratified and front steered "
    "no further. Set concentration; in Python pass MOODPOTrainer(weight_sampler=your_function).",
    "corner_probability": "It went with weight_sampler=corners. A concentration below 1 favors "
    "corners.",
    "exploration": "It went with weight_sampler=front. Leave it out.",
    "relabel=fresh": "Weights drawn anew changed nothing beside the opposite ones. Use "
    "relabel=antithetic.",
    "weight_format=directive": "Use weight_format=grouped, the same sentences with those of nearly "
    "equal weight under one heading, which steered more.",
    "num_relabels": "More weight vectors than the opposite one changed nothing. Leave it out.",
    "relabel_min_importance": "Dropping off-policy pairs cost hypervolume. Leave it out; the "
    "metric relabel/log_importance says how far off-policy they are.",
    "contrastive_coefficient": "It added nothing to relabeling. Leave it out.",
}
"""Name of a setting, or NAME=VALUE where only that value went -> why, and what to use instead."""


def refuse_removed(names: Iterable[str]) -> None:
    """Refuses the first setting that this version no longer has.

    Args:
        names: Settings as they were given, without dashes; or NAME=VALUE.

    Raises:
        ConfigError: Naming it, why it went, and what to use instead.
    """
    for name in names:
        if name in REMOVED:
            raise ConfigError(f"{name} is no longer a setting: {REMOVED[name]}")
