"""Merging: an adapter's change written into the weights, and tried: never assumed to be right.

A vocabulary head that shares its matrix with the embedding cannot take a change that is the head's
alone, so what is shared is untied first. Shapes: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["merge_adapter", "untie_adapted"]

# What peft says of tied weights: here they are untied, and the result is tried.
_TIED = ("Model with `tie_word_embeddings=True`", "Input and output embeddings are no longer tied")
PROBE_TOKENS = 8
ROUNDING, SHARE = 1e-4, 0.05  # of the logits' size; of what the adapter changes


def merge_adapter(model: Any) -> nn.Module | None:
    """Merges the active adapter of a PEFT model; its base model is changed in place.

    Args:
        model: In a precision that can hold the change, such as float32.

    Returns:
        The merged model, whose config says whether its embeddings are tied; None if it does not
        compute what base and adapter compute together, in which case `model` is of no more use.
    """
    model.eval()
    with torch.no_grad():
        expected = _probe(model)
        with model.disable_adapter():
            effect = (expected - _probe(model)).abs().max()
        untie_adapted(model)
        with warnings.catch_warnings():
            for message in _TIED:
                warnings.filterwarnings("ignore", message=message)
            merged: nn.Module = model.merge_and_unload()
        error = (_probe(merged) - expected).abs().max()
    _say_whether_tied(merged)
    allowed = ROUNDING * expected.abs().max() + SHARE * effect
    return merged if bool(error <= allowed) else None


def untie_adapted(model: nn.Module) -> None:
    """Gives every adapted module whose weight is shared a copy of its own."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for module in list(model.modules()):
        # Trained tokens are merged into every module that shares them, by peft.
        if not isinstance(module, BaseTunerLayer) or isinstance(module, TrainableTokensLayer):
            continue
        base = module.get_base_layer()
        for name, parameter in list(base.named_parameters(recurse=False)):
            if holders[id(parameter)] > 1:
                holders[id(parameter)] -= 1
                own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(base, name, own)


def _probe(model: Any) -> Tensor:
    """Logits `[1, T, V]` of a few tokens from all over the vocabulary, float32."""
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, rows - 1, min(PROBE_TOKENS, rows)).long()
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=ids.unsqueeze(0).to(device), use_cache=False).logits
    return logits.float()


def _say_whether_tied(model: Any) -> None:
    """Makes the config tell the truth: a loader would tie again what was untied."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is embedding.weight:
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
