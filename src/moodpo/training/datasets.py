"""Data sets of a trainer: checked and cleaned as files are, and made to fit the policy.

What `moodpo train` refuses, drops and cuts, the trainer refuses, drops and cuts, by the same code.
Knows nothing of rewards or of how prompts are used. Shapes: N prompts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from moodpo.data.lengths import check_lengths, fit_prompts, max_positions
from moodpo.data.messages import listed, shortened
from moodpo.data.prompts import LoadedPrompts, prompts_of
from moodpo.errors import ConfigError, DataError, one_line

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from moodpo.conditioning.instruction import Conditioner
    from moodpo.training.config import MOODPOConfig

__all__ = [
    "check_batches",
    "check_dataset",
    "check_datasets",
    "check_model_lengths",
    "fit_dataset",
    "fit_datasets",
    "fit_passed",
]

logger = logging.getLogger(__name__)

Checked = LoadedPrompts | Mapping[str, LoadedPrompts] | None
"""A data set, several by name, or none."""


def check_datasets(
    args: MOODPOConfig, train_dataset: Any, eval_dataset: Any
) -> tuple[LoadedPrompts | None, Checked]:
    """Both data sets of a trainer, checked before anything is loaded.

    Args:
        args: The settings.
        train_dataset: Rows with a `prompt`, or None.
        eval_dataset: The same, or several by name.

    Raises:
        DataError: If one cannot be used; the message says which, what was expected, and how to
            get there.
        ConfigError: If the settings ask for held-out prompts and there are none.
    """
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ConfigError(
            f"eval_strategy={getattr(args.eval_strategy, 'value', args.eval_strategy)} needs "
            "held-out prompts. Pass eval_dataset (--eval_csv_path)."
        )
    train = None if train_dataset is None else check_dataset(train_dataset, "train_dataset")
    if isinstance(eval_dataset, Mapping) and eval_dataset:
        named = {n: check_dataset(d, f"eval_dataset[{n!r}]") for n, d in eval_dataset.items()}
        return train, named
    return train, None if eval_dataset is None else check_dataset(eval_dataset, "eval_dataset")


def check_dataset(dataset: Any, name: str) -> LoadedPrompts:
    """A data set as `load_prompts` gives one: rows without text dropped, all others checked.

    Args:
        dataset: A `datasets.Dataset`, what `load_prompts` gave, or anything else with a length
            and rows `{"prompt": …, …}` by position.
        name: What messages call it.

    Raises:
        DataError: If it is something else, or its prompts cannot be used.
    """
    if isinstance(dataset, LoadedPrompts):
        return dataset
    loaded = prompts_of(_as_dataset(dataset, name), source=name)
    if loaded.report.empty_dropped:
        logger.warning("%s", loaded.report)
    return loaded


def fit_dataset(
    checked: Checked, conditioner: Conditioner, tokenizer: PreTrainedTokenizerBase, args: Any
) -> Any:
    """Data sets whose prompts fit beside their instruction, as the Trainer takes them.

    Args:
        checked: From `check_datasets`.
        conditioner: Writes weights into prompts.
        tokenizer: The policy's.
        args: Say how long prompts may be, and what becomes of longer ones.

    Returns:
        A `datasets.Dataset`, several by name, or None.

    Raises:
        DataError: If no prompt is left, or one cannot be cut to fit.
    """
    if checked is None:
        return None
    if isinstance(checked, Mapping):
        return {n: fit_dataset(each, conditioner, tokenizer, args) for n, each in checked.items()}
    fitted = fit_prompts(
        checked,
        conditioner,
        tokenizer,
        max_prompt_length=args.max_prompt_length,
        overflow=args.prompt_overflow,
    )
    if fitted.report != checked.report:
        logger.warning("%s", fitted.report)
    return fitted.dataset


def fit_datasets(
    train: Any,
    held_out: Any,
    conditioner: Conditioner,
    tokenizer: PreTrainedTokenizerBase,
    args: MOODPOConfig,
) -> tuple[Any, Any]:
    """Training's and evaluation's prompts, each as `fit_dataset` makes them.

    Raises:
        DataError: If no prompt is left, or one cannot be cut to fit.
        ConfigError: If no batch is left to train on.
    """
    fitted = [fit_dataset(each, conditioner, tokenizer, args) for each in (train, held_out)]
    if fitted[0] is not None:
        check_batches(len(fitted[0]), args)
    return fitted[0], fitted[1]


def fit_passed(
    dataset: Any,
    conditioner: Conditioner,
    tokenizer: PreTrainedTokenizerBase,
    args: MOODPOConfig,
) -> Any:
    """A data set that is passed to an evaluation, checked and fitted as the trainer's own are."""
    return fit_dataset(check_dataset(dataset, "the data set"), conditioner, tokenizer, args)


def check_batches(num_prompts: int, args: MOODPOConfig) -> None:
    """Refuses to drop the last batch where it is the only one.

    Raises:
        ConfigError: Naming the settings that leave nothing to train on.
    """
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and num_prompts < batch:
        raise ConfigError(
            f"dataloader_drop_last leaves no batch: there are {num_prompts} prompts, and a batch "
            f"of all processes has {batch}. Lower per_device_train_batch_size, or leave it out."
        )


def check_model_lengths(model: Any, args: MOODPOConfig) -> None:
    """Refuses lengths that the model's positions cannot hold; see `check_lengths`."""
    config: Any = getattr(model, "config", None)
    described = config.to_dict() if hasattr(config, "to_dict") else {}
    check_lengths(
        getattr(config, "name_or_path", None) or "The model",
        max_positions(described),
        max_prompt_length=args.max_prompt_length,
        max_new_tokens=args.max_new_tokens,
    )


# ---- What was passed ----


def _as_dataset(given: Any, name: str) -> Dataset:
    """What was passed as a `datasets.Dataset`; itself where it is one."""
    from datasets import Dataset

    if isinstance(given, Dataset) and given.format["type"] != "custom":
        if not len(given):
            raise DataError(f"{name} has no rows. Pass at least one prompt.")
        return given
    if misfit := _misfit(given):
        raise DataError(f"{name} {misfit}: expected a data set with a `prompt` column.")
    rows = [given[i] for i in range(len(given))]
    if not rows:
        raise DataError(f"{name} has no rows. Pass at least one prompt.")
    if odd := [row for row in rows if not isinstance(row, Mapping)]:
        raise DataError(
            f"{name} has the row {shortened(odd[0])} ({type(odd[0]).__name__}): expected rows "
            "{'prompt': …}. Pass datasets.Dataset.from_dict({'prompt': prompts})."
        )
    return _from_rows(rows, name)


def _misfit(given: Any) -> str | None:
    """Why something has no rows by position, and what to pass instead; None where it has."""
    kind = type(given).__name__
    if isinstance(given, str | bytes | os.PathLike):
        return f"is the {kind} {shortened(given)}. Pass moodpo.data.prompts.load_prompts(path)"
    if isinstance(given, Mapping) and given and all(map(_is_dataset, given.values())):
        return (
            f"is a {kind} of the splits {listed(list(given))}. Pass one of them, such as "
            f"dataset[{next(iter(given))!r}]"
        )
    if isinstance(given, Mapping):
        return f"is a {kind} of columns. Pass datasets.Dataset.from_dict(it)"
    if hasattr(given, "columns") and hasattr(given, "shape"):
        return f"is a table ({kind}). Pass datasets.Dataset.from_pandas(it, preserve_index=False)"
    if not hasattr(given, "__len__"):
        return (
            f"is a {kind}, which has no length, and prompts are drawn by position. Take as many "
            "rows as are needed: datasets.Dataset.from_list(list(it.take(1000)))"
        )
    if not hasattr(given, "__getitem__"):
        return f"is a {kind}, whose rows have no order. Pass a list of its rows"
    return None


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "column_names")


def _from_rows(rows: Sequence[Mapping[str, Any]], name: str) -> Dataset:
    from datasets import Dataset

    columns = list(dict.fromkeys(column for row in rows for column in row))
    try:
        return cast(
            "Dataset", Dataset.from_dict({c: [row.get(c) for row in rows] for c in columns})
        )
    except Exception as error:  # Arrow's many refusals of mixed or unknown types
        said = one_line(error, at_most=200)
        raise DataError(
            f"{name}: its rows do not fit columns of one type each ({type(error).__name__}: "
            f"{said}). Give every column one type, or remove it."
        ) from error
