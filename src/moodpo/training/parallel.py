"""Parallel: which process gets which prompts, and how several together do what one would.

One process takes the prompts of an epoch in order, so many at a time; W processes share each such
portion. Where the last one is short nobody repeats a prompt to fill it up, as accelerate would:
some processes get fewer, or none. Knows nothing of models.
Shapes: W processes, R passes of one optimizer step, n rows of this process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainingArguments

from moodpo.errors import ConfigError
from moodpo.records import PromptBatch

__all__ = [
    "Processes",
    "PromptShares",
    "collate_prompts",
    "gather_rows",
    "places",
    "share",
    "share_prompts",
    "zero_loss",
]


@dataclass(frozen=True, slots=True)
class Processes:
    """The W processes of a run, as those see them who add up or share out.

    Attributes:
        accelerator: Of the trainer.
        count: W.
        index: Which of them this is.
        device: Of this process.
    """

    accelerator: Accelerator
    count: int
    index: int
    device: torch.device

    @classmethod
    def of(cls, accelerator: Accelerator, args: TrainingArguments) -> Processes:
        """The processes of a run.

        Raises:
            ConfigError: Under FSDP or DeepSpeed, which leave generation without whole parameters.
        """
        sharding = (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if accelerator.distributed_type in sharding:
            raise ConfigError(
                "FSDP and DeepSpeed shard the parameters that generation needs whole; moodpo "
                "trains with plain data parallelism (DDP). Remove them from the accelerate config."
            )
        return cls(accelerator, args.world_size, args.process_index, args.device)

    def gather(self, values: Tensor) -> Tensor:
        """The rows of all processes, each of which may bring another number of them."""
        if self.count == 1:
            return values
        return gather_rows(values, lambda rows: self.accelerator.gather(rows.to(self.device)).cpu())

    def reduce(self, values: Tensor) -> Tensor:
        """The sum over processes of values of one shape."""
        if self.count == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values.to(self.device), "sum")
        return reduced.cpu()

    def total(self, number: float) -> float:
        """The sum of a number over processes."""
        return self.reduce(torch.tensor([float(number)])).sum().item()

    def others_names(self, own: Sequence[str]) -> list[str]:
        """The names that any of several processes has; none where this is the only one."""
        return [] if self.count == 1 else list(gather_object(list(own)))

    def prompt_batch(self, batches: Sequence[Mapping[str, Any]], *, first: int = 0) -> PromptBatch:
        """Joins batches, of which every process has as many; positions count over processes.

        Args:
            batches: From `collate_prompts`, R of them.
            first: How many prompts come before, counted over processes.
        """
        sizes = self.gather(torch.tensor([[len(batch["prompts"]) for batch in batches]]))  # [W, R]
        filled = [batch for batch in batches if batch["prompts"]]
        names = filled[0]["columns"] if filled else ()
        return PromptBatch(
            prompts=[p for batch in filled for p in batch["prompts"]],
            indices=[first + place for place in places(sizes, self.index)],
            columns={n: [v for batch in filled for v in batch["columns"][n]] for n in names},
        )


def collate_prompts(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of a data set as the prompts and columns of a `PromptBatch`: text needs no padding."""
    names = [name for name in features[0] if name != "prompt"] if features else []
    return {
        "prompts": [row["prompt"] for row in features],
        "columns": {name: [row[name] for row in features] for name in names},
    }


def zero_loss(model: nn.Module) -> Tensor:
    """A loss of 0 that reaches every trained parameter, for a process without a pair to train.

    Under DDP it takes a forward pass (of one token): gradients are averaged by hooks that only a
    forward pass arms, and another process may have pairs.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        device = next(model.parameters()).device
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        return model(input_ids=token, use_cache=False).logits.float().sum() * 0.0  # type: ignore[no-any-return]
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.stack([p.flatten()[0] * 0.0 for p in trained]).sum()


def share(items: Sequence[int], num_processes: int, process_index: int) -> list[int]:
    """One process's part of the items: as many as the others' or one more, the first ones first."""
    first, last = (-(-len(items) * r // num_processes) for r in (process_index, process_index + 1))
    return list(items[first:last])


class PromptShares(BatchSampler):
    """The batches of one process, of which there are equally many on each.

    Args:
        batches: Batches of indices as one process would see them, all but the last of one size.
        num_processes: W.
        process_index: Which of the processes this is.
        portion: How many batches are shared out at a time; by default one for each process.
        drop_last: Whether a last portion of fewer batches is left out.
    """

    def __init__(
        self,
        batches: BatchSampler,
        num_processes: int,
        process_index: int,
        *,
        portion: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.batches, self.portion, self.drop_last = batches, portion or num_processes, drop_last
        self.num_processes, self.process_index = num_processes, process_index

    def __iter__(self) -> Iterator[list[int]]:
        for portion in _portions(self.batches, self.portion):
            if self.drop_last and len(portion) < self.portion:
                return
            indices = list(itertools.chain.from_iterable(portion))
            yield share(indices, self.num_processes, self.process_index)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batches), self.portion)
        return whole + (rest > 0 and not self.drop_last)


def share_prompts(
    loader: DataLoader[Any], num_processes: int, process_index: int
) -> DataLoader[Any]:
    """Keeps a loader that accelerate prepared from repeating prompts; changes it in place.

    What accelerate put between the loader and its batches is told to pass them on, as the Trainer
    itself does for batches that know of processes.
    """
    from accelerate.data_loader import BatchSamplerShard

    shard = getattr(loader, "batch_sampler", None)
    if not isinstance(shard, BatchSamplerShard) or shard.num_processes == 1:
        return loader
    shard.batch_sampler = PromptShares(
        shard.batch_sampler,
        num_processes,
        process_index,
        portion=1 if shard.split_batches else num_processes,
        drop_last=shard.drop_last,
    )
    shard.num_processes, shard.process_index, shard.split_batches = 1, 0, False
    shard.batch_size = None  # of any size
    return loader


def places(sizes: Tensor, process_index: int) -> list[int]:
    """Where this process's prompts stand among those of all, counted as one process would.

    Args:
        sizes: `[W, R]` int64: how many prompts each process has in each pass.
        process_index: Which of the processes this is.

    Returns:
        Places from 0 on, pass by pass.
    """
    counts = sizes.T  # [R, W]: pass by pass, and in each process by process
    ends = counts.flatten().cumsum(0).view_as(counts)[:, process_index].tolist()
    own = counts[:, process_index].tolist()
    return [i for end, size in zip(ends, own, strict=True) for i in range(end - size, end)]


def gather_rows(values: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """The rows of all processes in their order, where each may have another number of them.

    Args:
        values: `[n, ...]`.
        gather: Concatenates tensors of one shape over processes.

    Returns:
        `[n of the first + n of the second + ..., ...]`.
    """
    sizes = gather(torch.tensor([len(values)])).tolist()  # [W]
    longest = max(sizes)
    if longest == 0:
        return values
    padded = values.new_zeros(longest, *values.shape[1:])
    padded[: len(values)] = values
    parts = gather(padded).view(len(sizes), longest, *values.shape[1:])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _portions(batches: Iterable[list[int]], size: int) -> Iterator[list[list[int]]]:
    iterator = iter(batches)
    while portion := list(itertools.islice(iterator, size)):
        yield portion
