"""The first batch of a stream, or of a loader of the user's own: looked at when training starts, then trained on."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from itertools import chain
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, RandomSampler
from transformers import Trainer

from hfkd.data.first_rows import PROBED_ROWS, map_style
from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)
NAME = "get_train_dataloader"
Ready = Callable[[Any], Any]


def own_loader(trainer: Trainer) -> bool:
    """Whether the user's subclass, or the user, has put a method of their own in place of Trainer's."""
    return NAME in vars(trainer) or getattr(type(trainer), NAME) is not getattr(Trainer, NAME)


class KeptFirst:
    """A training loader whose first batch has been taken, as `batch`: the first iteration begins with it all the same.

    So no batch is lost and none comes twice, whether the loader can be read again or not. A run that is resumed reads a
    loader over rows by number, or a list, from its start: its order is then what it was when the run was started.

    ready: makes of a batch what is trained on, such as with labels; check: looks at that, and may raise. None: nothing.
    Raises ValueError for an empty loader.
    """

    def __init__(self, loader: Any, resumed: bool) -> None:
        self.loader = loader
        self.ready: Ready | None = None
        self.check: Ready | None = None
        self._by_number = map_style(getattr(loader, "dataset", None))
        again = resumed and (self._by_number or isinstance(loader, Sequence))
        with kept_random_state() if again else nullcontext():
            self._rest: Iterator[Any] | None = iter(loader)
            self._once = self._rest is loader
            try:
                self.batch = next(self._rest)
            except StopIteration:
                raise ValueError(
                    f"the training loader, a {type(loader).__name__}, gives no batch: there is nothing to learn from; "
                    "check the data it reads, and that nobody has read a generator to its end before"
                ) from None
        if again:
            self._leave()

    def of_epoch(self, asked: Mapping[str, Any]) -> Any:
        """What Trainer is to iterate over, `asked` for an epoch (`Trainer._run_epoch`), or for the rest of one.

        accelerate leaves out rows by number; of others it reads the batches of a data set, and drops them.
        """
        epoch = asked["epoch"]
        resumed = asked["resume_from_checkpoint"] is not None and epoch == asked["epochs_trained"]
        skips = resumed and asked["steps_trained_in_current_epoch"] > 0
        sampler = getattr(self.loader, "sampler", None)
        if epoch and skips and isinstance(sampler, RandomSampler) and not hasattr(sampler, "set_epoch"):
            logger.warning(
                "The training loader shuffles by random numbers of which no checkpoint knows those of this epoch's "
                "start: the rest of it has its rows in another order, so that some come twice and others not. Return "
                "self.accelerator.prepare(loader), whose order is that of seed and epoch."
            )
        if epoch and not self._once:  # a run resumed later: the loader is told its epoch before it is read
            self._leave()
        if not skips:
            return self
        if self._rest is None and self.ready is None and self._by_number:
            return self.loader
        plain = {"batch_size": None, "drop_last": False, "collate_fn": _as_is, "prefetch_factor": None}
        return SimpleNamespace(dataset=Batches(self), **plain)

    def __iter__(self) -> Iterator[Any]:
        rest, self._rest = self._rest, None
        batches = iter(self.loader) if rest is None else chain([self.batch], rest)
        return map(self.made_ready, batches)

    def made_ready(self, batch: Any) -> Any:
        batch = batch if self.ready is None else self.ready(batch)
        return batch if self.check is None else self.check(batch)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["loader"], name)

    def _leave(self) -> None:
        """Read the loader from its start next time."""
        self._rest, begun = None, self._rest
        end = getattr(self.loader, "end", None)  # accelerate's loaders say that they are being read
        if begun is not None and end is not None:
            end()

    @contextmanager
    def given_to(self, trainer: Trainer) -> Iterator[None]:
        """Within it the trainer's `get_train_dataloader` gives this the first time, and then what it always gives."""
        before = vars(trainer).get(NAME)

        def back() -> None:
            vars(trainer).pop(NAME, None)
            if before is not None:
                vars(trainer)[NAME] = before

        def once() -> Any:
            back()
            return self

        vars(trainer)[NAME] = once
        try:
            yield
        finally:
            back()


class Batches(IterableDataset):
    """A loader's batches as the rows of a data set."""

    def __init__(self, loader: KeptFirst) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)


def _as_is(batch: Any) -> Any:
    return batch


def few_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch's first rows, where each of its values has as many; else all of it, which a step takes as well."""
    made = {name: value for name, value in batch.items() if name != "host_targets"}  # found again where it is needed
    sizes = {len(value) if isinstance(value, Sized) and not _single(value) else None for value in made.values()}
    if None in sizes or len(sizes) != 1 or sizes <= set(range(PROBED_ROWS + 1)):
        return dict(batch)
    return {name: value[:PROBED_ROWS] for name, value in made.items()}


def _single(value: Any) -> bool:
    """Whether a batch has it once, and not for each row."""
    return isinstance(value, (str, Mapping)) or (isinstance(value, Tensor) and value.ndim == 0)
