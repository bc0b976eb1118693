"""Samplers whose order of rows is the same after a resume."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler


class GroupedByEpoch(Sampler[int]):
    """Trainer's `LengthGroupedSampler`, whose order is a function of seed and epoch.

    By default it draws from the process's generator, whose state at the start of an epoch no checkpoint stores: after a
    resume, the rest of an epoch would contain some rows twice and others not at all.
    """

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def by_epoch(sampler: Any, seed: int) -> Any:
    """`sampler`, in an order that is a function of seed and epoch.

    That of Trainer's `batch_rebalance` is one of the epoch alone: each seed would have the same batches. Lengths become
    a list: of a column of `datasets` each is read by itself, in each epoch.
    """
    if isinstance(sampler, BatchRebalanceSampler):
        sampler.seed = seed
    if not isinstance(sampler, LengthGroupedSampler):
        return sampler
    sampler.lengths = list(sampler.lengths[:])
    return GroupedByEpoch(sampler, seed)


def tell_epoch(loader: Any, epoch: int) -> None:
    """Set the epoch of the samplers in a training loader.

    Trainer and accelerate do not reach all of them in the rest of an epoch that is resumed: those of `batch_rebalance`
    in several processes, and any with `dispatch_batches`.
    """
    batches = getattr(loader, "batch_sampler", None)
    while batches is not None:
        for sampler in (batches, getattr(batches, "sampler", None)):
            if isinstance(sampler, (BatchRebalanceSampler, GroupedByEpoch, SeedableRandomSampler)):
                sampler.set_epoch(epoch)
        batches = getattr(batches, "batch_sampler", None)


def with_lengths(dataset: Any, args: Any) -> Any:
    """`dataset` without its transform if a sampler reads lengths from a stored column, which transforms leave out."""
    reads = args.train_sampling_strategy in ("group_by_length", "batch_rebalance")
    stored = isinstance(dataset, Dataset) and args.length_column_name in dataset.column_names
    return dataset.with_format(None) if reads and stored else dataset
