"""Compares the batches and rows of an epoch with what the length of the training stream says."""

import logging
from collections.abc import Mapping
from typing import Any

from torch.utils.data import IterableDataset

from hfkd.training.host import Host

logger = logging.getLogger(__name__)


class EpochLength:
    """Watches the epochs of a loader that has a length, and warns, once, where that is not what it gives.

    Trainer plans steps, learning rate and a resume by the length. It takes a step when a group of
    `gradient_accumulation_steps` is complete, or at the end that the length announces: if a stream ends before that,
    what is left of a group would be added to the first step of the next epoch, divided by its own items.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._said = False
        self.begin({"train_dataloader": None, "steps_in_epoch": 0, "resume_from_checkpoint": None})

    def begin(self, epoch: Mapping[str, Any]) -> None:
        """epoch: the keywords of `Trainer._run_epoch`."""
        self._loader, self._wanted = epoch["train_dataloader"], epoch["steps_in_epoch"]
        self._known, self._ended = self.host.schedule.epochs_are_known, False
        resumed = epoch["resume_from_checkpoint"] is not None and epoch["epoch"] == epoch["epochs_trained"]
        self._batches = epoch["steps_trained_in_current_epoch"] if resumed else 0
        self._rows, self._largest, self._left, self._whole = 0, 0, 0, self._batches == 0

    def whole_group(self, batches: list[Any], wanted: int) -> list[Any]:
        """`batches` for one step, or none where a loader with a length ends before they are the `wanted` number."""
        if self._known and len(batches) < wanted:
            self._ended, self._left = True, self._left + len(batches)
            return []
        self._batches += len(batches)
        sizes = [len(batch["labels"]) for batch in batches] if self._by_workers else []
        self._rows, self._largest = self._rows + sum(sizes), max(self._largest, *sizes, 0)
        return batches

    @property
    def _by_workers(self) -> bool:
        """Whether several workers read a stream with a length: the last batch of each may be smaller."""
        stream = isinstance(getattr(self._loader, "dataset", None), IterableDataset)
        return self._known and stream and getattr(self._loader, "num_workers", 0) > 1

    def end(self) -> None:
        if self._said:
            return
        if self._ended:
            self._say_short()
        elif self._whole and self._by_workers and self._batches == self._wanted:
            self._say_rest()

    def _say_short(self) -> None:
        self._said = True
        left = f" The last {self._left}, too few for a step, are left out." if self._left else ""
        logger.warning(
            "The training loader has given %d batches in this epoch, but its length says %d.%s Epochs, the learning "
            "rate and the last step are planned by the length, and a resumed run would go on at another place: "
            "correct __len__, or leave it out and set max_steps.",
            self._batches + self._left,
            self._wanted,
            left,
        )

    def _say_rest(self) -> None:
        dataset = self._loader.dataset
        rows, said = self._rows * self.host.accelerator.num_processes, len(dataset)
        one_each = self._largest == self.host._train_batch_size  # in place of rows that a collator has joined
        if rows >= said or not one_each or self.host.args.dataloader_drop_last:
            return
        self._said = True
        logger.warning(
            "%d of the %d rows of the training stream have been trained on in this epoch: each of the %d workers ends "
            "with a smaller batch of its own, which its length does not count. Set dataloader_num_workers to 0 or 1, "
            "or leave __len__ out and set max_steps, if the same rows must not be left out of all epochs.",
            rows,
            said,
            self._loader.num_workers,
        )
