"""Passes over training loaders: where one of unknown length ends, and which epoch hfkd's transforms are told."""

import math
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from hfkd.data.epochs import set_epoch_of


class Passes:
    """A training loader without a length, whose passes are epochs of whole groups of micro-batches.

    Trainer takes a step when a group (`gradient_accumulation_steps`) is complete, or at the end of an epoch whose
    length it knows. Here the end comes unannounced: what is left of a group would be added to the first step of the
    next pass, divided by its own items. So the next pass completes the group, and goes on where that has left it.
    """

    def __init__(self, loader: Any, group: int) -> None:
        self.loader, self.group = loader, group
        self.restart()

    def restart(self) -> None:
        """Read the loader from its start, as the first pass."""
        self._begun = 0
        self._begin()

    def _begin(self) -> None:
        self._pass, self._read = self._batches(self._begun), 0
        self._begun += 1

    def _batches(self, number: int) -> Iterator[Any]:
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(number)
        set_epoch_of(getattr(self.loader, "dataset", None), number)
        yield from self.loader

    def __iter__(self) -> Iterator[Any]:
        given, ended = 0, False
        while True:
            for batch in self._pass:
                given, self._read = given + 1, self._read + 1
                yield batch
                if ended and given % self.group == 0:
                    return
            if not self._read:  # there is nothing left to read
                return
            self._begin()
            ended = given > 0
            if ended and given % self.group == 0:
                return

    def set_epoch(self, epoch: int) -> None:
        """Nothing: passes are counted here, where they begin."""

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["loader"], name)


def in_passes(loader: Any, group: int) -> Any:
    """`loader`, as `Passes` if its length is unknown."""
    return loader if has_length(loader) else Passes(loader, group)


class EpochViews(TrainerCallback):
    """Sets the epoch of hfkd's transforms of the training set; `Passes` does so where its length is unknown."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        loader = keywords["train_dataloader"]
        if not has_length(loader):  # Trainer counts shares of max_steps there
            return
        dataset = getattr(loader, "dataset", None)  # a user's own may be any iterable
        set_epoch_of(dataset, math.floor(round(state.epoch or 0.0, 6)))
