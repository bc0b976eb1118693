"""Reading streams on several ranks."""

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch.utils.data import IterableDataset
from transformers.trainer_utils import has_length

from hfkd.utils.temporary_settings import setting

STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")
# Of a loader whose rows are counted, which its workers would do in processes of their own.
WITHOUT_WORKERS = {
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": None,
    "dataloader_persistent_workers": False,
}


def read_by_each_rank(dataset: Any, one_item_a_row: bool, accelerator: Accelerator) -> AbstractContextManager[None]:
    """Context in which loaders of a token stream are created so that each rank reads it and takes its share of rows.

    one_item_a_row: whether the rows are not of tokens (`Task.one_item_a_row`). By default accelerate reads a stream on
    one rank, and concatenates batches to send them to the others; token batches differ in length and contain more than
    tensors. A `dispatch_batches` set by the user is kept.
    """
    config = accelerator.dataloader_config
    mine = isinstance(dataset, IterableDataset) and not one_item_a_row and accelerator.num_processes > 1
    return setting(config, dispatch_batches=False) if mine and config.dispatch_batches is None else nullcontext()


class WholeStream(IterableDataset[Any]):
    """A stream of which each rank reads all rows, and takes its share of each batch of all ranks.

    Of one with shards accelerate would give each rank some of them. One rank then has more rows than another, and waits
    for it for ever where both meet: in each batch of an evaluation, and where something is due at the end of an epoch.

    The last batch of all ranks is filled with first rows. Where rows are scored, those have to be left out again, for
    which `count_for` tells the loader how many rows there were: it does not know.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._loader: Any = None

    def __iter__(self) -> Iterator[Any]:
        count = 0
        for count, row in enumerate(self.stream, 1):  # noqa: B007
            yield row
        if self._loader is not None and (loader := self._loader()) is not None:
            share = loader.dataset  # accelerate's, of this rank
            loader.remainder = count % (share.batch_size * (1 if share.split_batches else share.num_processes))

    def __len__(self) -> int:
        return len(self.stream)  # a TypeError for most

    def count_for(self, loader: Any) -> Any:
        """Tell `loader` how many rows its last batch has, once this has ended; returns it."""
        self._loader = weakref.ref(loader)
        return loader

    def __getattr__(self, name: str) -> Any:  # such as `set_epoch`, which not all streams have
        if name.startswith("__"):  # of pickling
            raise AttributeError(name)
        return getattr(self.stream, name)


def even_stream(dataset: Any, accelerator: Accelerator, scored: bool, epochs: bool = False) -> Any:
    """`dataset`, or it as `WholeStream` if ranks read it themselves and have to have as many batches as each other.

    scored: each row has to count once. epochs: something is due at the end of each pass (`due_at_epochs`).
    """
    each = isinstance(dataset, IterableDataset) and accelerator.dataloader_config.dispatch_batches is False
    uneven = scored or (epochs and not has_length(dataset))
    return WholeStream(dataset) if each and uneven and accelerator.num_processes > 1 else dataset


def due_at_epochs(args: Any) -> bool:
    """Whether all ranks evaluate, save or log together at the end of an epoch."""
    return any(getattr(args, name) == "epoch" for name in STRATEGIES)
