"""Reading streams on several ranks."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate import Accelerator
from torch.utils.data import IterableDataset

from hfkd.tasks.base import Task
from hfkd.utils.temporary_settings import setting


def read_by_each_rank(dataset: Any, task: Task, accelerator: Accelerator) -> AbstractContextManager[None]:
    """Context in which loaders of a token stream are created so that each rank reads it and takes its share of rows.

    By default accelerate reads a stream on one rank, and concatenates batches to send them to the others; token batches
    differ in length and contain more than tensors. A `dispatch_batches` set by the user is kept.
    """
    config = accelerator.dataloader_config
    mine = isinstance(dataset, IterableDataset) and not task.one_item_a_row and accelerator.num_processes > 1
    return setting(config, dispatch_batches=False) if mine and config.dispatch_batches is None else nullcontext()
