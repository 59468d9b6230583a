"""Sharing: work that several rewards need for the same texts, done once per question to a panel.

What is shared is whole and unchanged: the very token rows and activations that the next reward
would have computed for itself, from the same rows in the same batches. Nothing outlives the
question, because weights and tokenizers may change between two. Knows no panel and no reward.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["equal_backbones", "once", "shared_work", "tokenizer_fingerprint"]

Result = TypeVar("Result")

# A context variable rather than an argument: it reaches a model reward through the plain `score`
# of the protocol, also where somebody else's reward wraps one. Threads do not see each other's.
_DONE: ContextVar[list[tuple[Any, Any]] | None] = ContextVar("moodpo_shared_work", default=None)

# What may differ between the configurations of two backbones that compute the same.
_NAMES = {"_name_or_path", "id2label", "label2id", "num_labels", "problem_type"}
_NAMES |= {"transformers_version"}


@contextmanager
def shared_work() -> Iterator[None]:
    """Within it, `once` computes for each key a single time; at its end all is forgotten."""
    token = _DONE.set([])
    try:
        yield
    finally:
        _DONE.reset(token)


def once(key: tuple[Any, ...], compute: Callable[[], Result]) -> Result:
    """What `compute` gives, or gave for an equal key within the same `shared_work`.

    Args:
        key: Everything that the result depends on; need not be hashable. The cheapest to compare
            first.
        compute: Called without arguments. What it raises is not remembered.

    Returns:
        The result; it may be shared, so it must not be changed.
    """
    done = _DONE.get()
    if done is None:
        return compute()
    for known, result in done:
        if known == key:
            return result  # type: ignore[no-any-return]
    computed = compute()
    done.append((key, computed))
    return computed


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> tuple[type, str] | None:
    """Equal for two tokenizers only if they turn every text into the same tokens.

    Args:
        tokenizer: Loaded, and not to be changed any more.

    Returns:
        Its class, with a digest of its whole `tokenizer.json` and of the settings beside it; None
        for tokenizers in plain Python, whose rules cannot be read off.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rules = json.loads(backend.to_str())
    for left_by_last_call in ("truncation", "padding"):
        rules.pop(left_by_last_call, None)
    settings = {
        name: getattr(tokenizer, name, None)
        for name in (
            "all_special_ids",
            "special_tokens_map",
            "model_input_names",
            "truncation_side",
            "split_special_tokens",
            "chat_template",
            "chat_control_tokens",
        )
    }
    # The backend writes its rules in one order; sorting a large vocabulary would take a while.
    text = json.dumps(rules) + json.dumps(settings, sort_keys=True, default=str)
    return type(tokenizer), hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def equal_backbones(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    """Whether two classifiers differ in their heads alone.

    Compares classes, configurations and every parameter and buffer below the head; stops at the
    first difference, so that unlike models cost nothing.
    """
    import torch

    ours, theirs = first.base_model, second.base_model
    if type(first) is not type(second) or first is ours or second is theirs:
        return False
    if _rules(first) != _rules(second):
        return False
    mine, others = _tensors(ours), _tensors(theirs)
    return mine.keys() == others.keys() and all(
        (tensor.dtype, tensor.device) == (others[name].dtype, others[name].device)
        and torch.equal(tensor, others[name])
        for name, tensor in mine.items()
    )


def _rules(model: PreTrainedModel) -> dict[str, Any]:
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NAMES}
    return {**config, "attention": getattr(model.config, "_attn_implementation", None)}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))
