"""Token ids in configs, tokenizers and models: read from any container, kept within the model.

Knows nothing of text. A tokenizer may know tokens that the model has no row for (`[PAD]` was added,
the embeddings were not resized), and a model may have rows that no token belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["embedding_rows", "first_valid_id", "head_rows", "read_token_ids", "valid_ids"]


def read_token_ids(value: Any) -> tuple[int, ...]:
    """Token ids out of what configs hold them in.

    Args:
        value: A number, any iterable of numbers (list, tuple, set, array, tensor), or None.

    Returns:
        The ids in the order given; none of None.
    """
    if value is None:
        return ()
    if hasattr(value, "tolist"):  # arrays and tensors, of no dimension too
        value = value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(token for each in value for token in read_token_ids(each))
    return (int(value),)


def embedding_rows(model: Any) -> int | None:
    """How many token ids a model can read; None where it does not say."""
    return _rows(model, "get_input_embeddings", "num_embeddings")


def head_rows(model: Any) -> int | None:
    """How many token ids a model has logits for; None where it does not say."""
    return _rows(model, "get_output_embeddings", "out_features") or embedding_rows(model)


def valid_ids(ids: Iterable[int], model: Any) -> tuple[int, ...]:
    """Those of some ids that a model can read."""
    rows = embedding_rows(model)
    return tuple(token for token in ids if token >= 0 and (rows is None or token < rows))


def first_valid_id(candidates: Iterable[Any], model: Any) -> int:
    """The first id that a model can read; 0 if there is none.

    What fills up shorter sequences is masked, so any id that has a row is as good as another.

    Args:
        candidates: Ids, each as `read_token_ids` takes them.
        model: Whose rows count; any id is fine for a model that does not say.
    """
    return next(iter(valid_ids(read_token_ids(list(candidates)), model)), 0)


def _rows(model: Any, getter: str, count: str) -> int | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    number = getattr(module, count, None)
    if number is None and getattr(module, "weight", None) is not None:
        number = len(module.weight)
    return None if number is None else int(number)
