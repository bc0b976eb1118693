"""The first batch of a stream, or of a user's own loader: checked when training starts, then trained on."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset, RandomSampler
from transformers import Trainer

from hfkd.data.first_rows import PROBED_ROWS, map_style
from hfkd.training.passes import Passes
from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)
NAME = "get_train_dataloader"
Ready = Callable[[Any], Any]
_END: Any = object()


def own_loader(trainer: Trainer) -> bool:
    """Whether `get_train_dataloader` was overridden, by a subclass or on the instance."""
    return NAME in vars(trainer) or getattr(type(trainer), NAME) is not getattr(Trainer, NAME)


class KeptFirst:
    """A training loader whose first batch has already been read, as `batch`; the first iteration still starts with it.
    So no batch is lost or repeated, whether or not the loader can be iterated again.

    A resumed run iterates a loader over a map-style dataset, or a list, from its start, so that the order is that of
    the original run. ready: converts a batch to what is trained on, such as by adding labels; check: checks that, and
    may raise; None: skip. Raises ValueError for an empty loader.
    """

    def __init__(self, loader: Any, resumed: bool) -> None:
        self.loader, self.resumed = loader, resumed
        self.ready: Ready | None = None
        self.check: Ready | None = None
        self._passes = 0  # of a loader without a length, before the checkpoint that is resumed
        self._by_number = map_style(getattr(loader, "dataset", None))
        again = resumed and (self._by_number or isinstance(loader, Sequence))
        with kept_random_state() if again else nullcontext():
            self._rest: Iterator[Any] | None = iter(loader)
            self._once = self._rest is loader
            try:
                self.batch = next(self._rest)
            except StopIteration:
                raise ValueError(
                    f"the training loader, a {type(loader).__name__}, yields no batch, so that there is nothing "
                    "to train on; check the data it reads, and that a generator was not already exhausted"
                ) from None
        if again:
            self._leave()

    def anew(self, loader: Any) -> "KeptFirst":
        """The same for another loader, of batches of another size."""
        made = KeptFirst(loader, self.resumed)
        made.ready, made.check = self.ready, self.check
        return made

    def of_epoch(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of `Trainer._run_epoch` that change: the loader for the epoch, or for the rest of one.

        asked: the keywords. Trainer counts all batches of a loader without a length as one epoch when it resumes.
        """
        resumed = asked["resume_from_checkpoint"] is not None and asked["epoch"] == asked["epochs_trained"]
        skips = resumed and asked["steps_trained_in_current_epoch"] > 0
        if not isinstance(self.loader, Passes):
            return {"train_dataloader": self._rest_of(asked["epoch"], skips)}
        if skips:
            return self._after(asked["steps_trained_in_current_epoch"])
        return {"train_dataloader": self, "epoch": asked["epoch"] + self._passes}

    def _after(self, batches: int) -> dict[str, Any]:
        """Of a loader without a length: its pass and the rest of it behind this number of batches, which are read."""
        done, rest, left = 0, iter(self), batches
        while left:
            if next(rest, _END) is not _END:
                done, left = done + 1, left - 1
            elif done:
                self._passes, done, rest = self._passes + 1, 0, iter(self)
            else:
                raise ValueError(
                    f"the training loader ended {left} batches before the {batches} that had been trained on at the "
                    "checkpoint, and yields no more: return one that can be read from its start"
                )
        if (following := next(rest, _END)) is _END:  # the checkpoint is that of the end of a pass
            self._passes, done = self._passes + 1, 0
        epoch = {"epoch": self._passes, "epochs_trained": self._passes, "steps_trained_in_current_epoch": done}
        # Trainer skips those that have been read here, which are None
        behind = _skippable(Batches(self, chain(repeat(None, done), [following], rest))) if done else self
        return {"train_dataloader": behind, **epoch}

    def _rest_of(self, epoch: int, skips: bool) -> Any:
        """What Trainer iterates over for an epoch of known length; skips: for the rest of it.

        accelerate skips rows of a map-style dataset by index; of other loaders it reads the batches and drops them.
        """
        sampler = getattr(self.loader, "sampler", None)
        if epoch and skips and isinstance(sampler, RandomSampler) and not hasattr(sampler, "set_epoch"):
            logger.warning(
                "The training loader shuffles with a random state that the checkpoint does not store, so that "
                "the rest of this epoch is in another order: some rows come twice and others not at all. Return "
                "self.accelerator.prepare(loader), whose order depends on seed and epoch only."
            )
        if epoch and not self._once:  # resumed in a later epoch: set_epoch must be called before iterating
            self._leave()
        if not skips:
            return self
        if self._rest is None and self.ready is None and self._by_number:
            return self.loader
        return _skippable(Batches(self))

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
        """Iterate the loader from its start next time."""
        self._rest, begun = None, self._rest
        if isinstance(self.loader, Passes):
            self.loader.restart()
        end = getattr(self.loader, "end", None)  # accelerate's loaders register while they are iterated
        if begun is not None and end is not None:
            end()

    @contextmanager
    def given_to(self, trainer: Trainer) -> Iterator[None]:
        """Context in which the trainer's `get_train_dataloader` returns this at the first call, then its own loader."""
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
    """A loader's batches, or those of them that are given, as the rows of a dataset."""

    def __init__(self, loader: KeptFirst, given: Iterator[Any] | None = None) -> None:
        self.loader, self.given = loader, given

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader) if self.given is None else self.given

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)


def _skippable(batches: Batches) -> Any:
    """A loader as accelerate's `skip_first_batches` takes it, to read the batches and drop the first."""
    plain = {"batch_size": None, "drop_last": False, "collate_fn": as_is, "prefetch_factor": None}
    return SimpleNamespace(dataset=batches, **plain)


def as_is(batch: Any) -> Any:
    """A collator for batches that are ready."""
    return batch


def few_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The first rows of the batch if all its values have the same length; else the whole batch."""
    made = {name: value for name, value in batch.items() if name != "host_targets"}  # recomputed where it is needed
    sizes = {len(value) if isinstance(value, Sized) and not _single(value) else None for value in made.values()}
    if None in sizes or len(sizes) != 1 or sizes <= set(range(PROBED_ROWS + 1)):
        return dict(batch)
    return {name: value[:PROBED_ROWS] for name, value in made.items()}


def _single(value: Any) -> bool:
    """Whether a value belongs to the whole batch instead of to its rows."""
    return isinstance(value, (str, Mapping)) or (isinstance(value, Tensor) and value.ndim == 0)
