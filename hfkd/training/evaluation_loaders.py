"""Loaders of evaluation sets: which of them Trainer keeps, and those that accelerate has not prepared."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.data_loader import DataLoaderStateMixin

from hfkd.data.first_rows import sets_by_name
from hfkd.training.host import Host
from hfkd.training.private_api import KEPT_LOADERS
from hfkd.utils.temporary_settings import setting


class EvaluationLoaders:
    """With `dataloader_persistent_workers`, the loader that is made for a set is that of this set.

    Trainer keeps the loader of the first set that is evaluated, and reads that again for any other, such as the test
    set in `evaluate(test_set)`. Here it keeps those of the trainer's own evaluation sets, as long as they are these.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._sets: list[Any] = []

    @contextmanager
    def made_for(self, rows: Any) -> Iterator[None]:
        """Context of Trainer's `get_eval_dataloader(rows)`."""
        host = self.host
        own = list(sets_by_name(host.eval_dataset).values())
        if [*map(id, own)] != [*map(id, self._sets)]:
            vars(host).pop(KEPT_LOADERS, None)
            self._sets = own
        kept = rows is None or isinstance(rows, str) or rows is host.eval_dataset
        persists = host.args.dataloader_persistent_workers and kept
        with setting(host.args, dataloader_persistent_workers=persists):
            yield


@contextmanager
def read_whole(loader: Any, accelerator: Accelerator) -> Iterator[None]:
    """Context in which all rows of a `loader` that accelerate has not prepared are gathered for metrics.

    accelerate would take it for the loader that it has prepared last. That of training stands at its last batch after
    each epoch, and after training: of each batch as many rows would be scored as that one had.
    """
    state = accelerator.gradient_state
    if isinstance(loader, DataLoaderStateMixin):
        yield
        return
    before = state.dataloader_references
    state.dataloader_references = [*before, None]  # none is being read
    try:
        yield
    finally:
        state.dataloader_references = before
