"""Which rows come when: the same in a run that is taken up again."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedByEpoch(Sampler[int]):
    """Trainer's `LengthGroupedSampler`, whose order is a function of seed and epoch.

    By itself it draws from the process's generator, of whose state at an epoch's start no checkpoint knows: the rest of
    an epoch after a resume would have some rows twice and others not at all.
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
    """`sampler`, or one whose order after a resume is what it was."""
    return GroupedByEpoch(sampler, seed) if isinstance(sampler, LengthGroupedSampler) else sampler
