"""Transforms that depend on the epoch, and datasets that have them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, Self, cast

import torch
from datasets import Dataset, IterableDataset, SplitDict
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from transformers.trainer_utils import has_length

from hfkd.data.columns import whole_column
from hfkd.data.view_ids import SEEDS, view_ids
from hfkd.utils.argument_types import Positive, fitting


class Resizing(NamedTuple):
    """How evaluation resizes an image: the shortest edge to `edge`, then a centre crop of `size`.

    None: stored images have been resized to cover their size, and cropped, already.
    """

    size: int | None
    edge: int | None
    interpolation: str


class EpochTransform(ABC):
    """A transform whose rows are a function of (seed, epoch, index); a dataclass with the fields `seed` and `epoch`.

    The rows are the same in any worker, on any number of ranks, and after resuming. `epoch` is in shared memory, so
    that persistent workers see `set_epoch`.
    """

    seed: int
    epoch: Tensor
    mean: tuple[float, ...] | None = None  # of the normalisation of images
    std: tuple[float, ...] | None = None
    label_names: tuple[str, ...] | None = None  # of the classes, if no feature of the dataset has them

    def at_epoch(self, epoch: int) -> Self:
        """A copy of the transform that is fixed to one epoch."""
        return replace(cast(Any, self), epoch=torch.tensor(epoch))

    def one_view(self) -> Self:
        """The transform with one view per row instead of several."""
        return self

    def check_std(self) -> None:
        """Raise ValueError unless all of `std` are finite numbers above 0."""
        for place, deviation in enumerate(self.std or ()):
            fitting(type(self).__name__, f"std[{place}]", deviation, Positive)

    def seeds(self, index: list[int]) -> list[int]:
        """The seed of each row in this epoch."""
        return view_ids(torch.tensor(index), self.seed, self.epoch, SEEDS).tolist()

    @abstractmethod
    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        """Stored columns -> the columns of a batch, of B rows each."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)


class ImageEpochTransform(EpochTransform):
    """The views of images: `pixel_values`, normalised by `mean` and `std`, `labels`, `index` and `view`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    @abstractmethod
    def num_views(self) -> int:
        """The number of possible views of an image; 0 if views cannot be numbered."""

    @property
    @abstractmethod
    def resizing(self) -> Resizing:
        """How an image is resized before normalisation, without augmentation."""

    @abstractmethod
    def clean(self) -> Self:
        """The transform without augmentation."""


def epoch_zero() -> Tensor:
    """The initial value of `EpochTransform.epoch`."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


class ImageStream(torch.utils.data.IterableDataset):
    """A streamed split: an `IterableDataset` of `datasets`, and the transform of its rows.

    It is shuffled through a buffer of `buffer` rows, if set. The view of the n-th image that a worker reads in an epoch
    is a function of (seed, epoch, n, worker): the same after resuming, but different with another number of workers.
    `len()` is known if the dataset has it (on the Hub, not for folders); otherwise Trainer needs `max_steps`. It cannot
    be scanned by a teacher.
    """

    def __init__(
        self,
        rows: IterableDataset,
        transform: ImageEpochTransform,
        length: int | None = None,
        buffer: int = 0,
        seed: int = 0,
    ) -> None:
        self.rows = rows.shuffle(seed=seed, buffer_size=buffer) if buffer else rows
        self.transform, self.length = transform, length
        self.features = rows.features

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        step, first = (worker.num_workers, worker.id) if worker else (1, 0)
        for number, row in enumerate(self.rows):
            made = self.transform({k: [row[k]] for k in ("image", "labels")} | {"index": [first + number * step]})
            yield {name: made[name][0] for name in ("pixel_values", "labels")}

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("the number of images in this stream is not known: set max_steps")
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.rows.set_epoch(epoch)
        self.transform.set_epoch(epoch)


class OneEpoch(torch.utils.data.IterableDataset):
    """The rows of one epoch of a stream, as many as its `__len__`, even if the stream is infinite."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.rows), len(self.rows))

    def __getitem__(self, row: int) -> Any:  # for a row that a message names
        return next(islice(iter(self.rows), row, None))

    def __len__(self) -> int:
        return len(self.rows)


def refuse_streams(dataset: Any) -> None:
    """Raise ValueError for a training set that a scan cannot read, because it may be infinite."""
    if isinstance(dataset, ImageStream) or not has_length(dataset):
        raise ValueError(
            "the training set is a stream of unknown length, which a teacher scan would have to read completely: "
            "load the data without streaming, or pass thresholds=(low, high)"
        )


def stream_length(rows: IterableDataset) -> int | None:
    """The number of images in a stream; None if its dataset does not have it."""
    splits: Any = rows.info.splits or {}
    known = splits.get(str(rows.split)) if isinstance(splits, SplitDict) else None
    return known.num_examples or None if known is not None else None


def epoch_transform(dataset: Any) -> EpochTransform | None:
    """The `EpochTransform` of an `ImageStream`, or of a dataset with `set_transform`; None if there is none."""
    if isinstance(dataset, ImageStream):
        return dataset.transform
    transform = dataset.format["format_kwargs"].get("transform") if isinstance(dataset, Dataset) else None
    return transform if isinstance(transform, EpochTransform) else None


def datasets_in(dataset: Any) -> Iterator[Any]:
    """The dataset, and those that it holds as attributes: torch's `Subset` and `ConcatDataset`, and a user's own."""
    seen, waiting = set(), [dataset]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if not isinstance(one, (Dataset, ImageStream)):
            waiting += [part for value in getattr(one, "__dict__", {}).values() for part in _datasets_of(value)]


def _datasets_of(value: Any) -> list[Any]:
    values = list(value.values()) if isinstance(value, Mapping) else value
    values = values if isinstance(values, (list, tuple)) else [values]
    known = (Dataset, torch.utils.data.Dataset)
    return [one for one in values if isinstance(one, known)] if values and isinstance(values[0], known) else []


def set_epoch_of(dataset: Any, epoch: int) -> None:
    """Set the epoch of hfkd's transforms in a training set, whatever it is wrapped in.

    Trainer sets that of a stream itself, but not of one within another dataset, nor in a user's own loader.
    """
    for one in datasets_in(dataset):
        rows = one if isinstance(one, ImageStream) else epoch_transform(one)
        if rows is not None:
            rows.set_epoch(epoch)


@contextmanager
def first_epoch(dataset: Any) -> Iterator[None]:
    """Context in which hfkd's transforms in a dataset make the rows of the first epoch."""
    epochs = [transform.epoch for transform in map(epoch_transform, datasets_in(dataset)) if transform is not None]
    before = [int(epoch) for epoch in epochs]
    try:
        for epoch in epochs:
            epoch.fill_(0)
        yield
    finally:
        for epoch, value in zip(epochs, before, strict=True):
            epoch.fill_(value)


def image_transform(dataset: Any) -> ImageEpochTransform | None:
    """`epoch_transform`, if it is one of images; otherwise None."""
    transform = epoch_transform(dataset)
    return transform if isinstance(transform, ImageEpochTransform) else None


def common_transform(dataset: Any) -> EpochTransform | None:
    """`epoch_transform`, also of the rows in a `Subset` or a `ConcatDataset`, if all are resized and normalised alike.

    Not in a subclass of these, which may change the images.
    """
    parts = [epoch_transform(one) for one in _unwrapped(dataset)]
    first = parts[0] if parts else None
    return first if first is not None and all(_prepared_as(one) == _prepared_as(first) for one in parts) else None


def _unwrapped(dataset: Any) -> Iterator[Any]:
    if type(dataset) is Subset:
        yield from _unwrapped(dataset.dataset)
    elif type(dataset) is ConcatDataset:
        for part in dataset.datasets:
            yield from _unwrapped(part)
    else:
        yield dataset


def _prepared_as(transform: EpochTransform | None) -> Any:
    return transform and (type(transform), transform.mean, transform.std, getattr(transform, "resizing", None))


def unchanged_column(dataset: Any, name: str) -> Any:
    """A stored column as a numpy array; None unless batches get it as it is: a user's own transform may change it."""
    if not isinstance(dataset, Dataset) or name not in dataset.column_names:
        return None
    if dataset.format["type"] == "custom" and image_transform(dataset) is None:
        return None
    return whole_column(dataset, name)
