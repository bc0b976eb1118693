"""Transforms that know which epoch it is, and the data sets that carry them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple, Self, cast

import torch
from datasets import Dataset, IterableDataset, SplitDict
from torch import Tensor
from transformers.trainer_utils import has_length


class Resizing(NamedTuple):
    """How evaluation brings a picture to size: its shortest edge becomes `edge`, the centre of `size` is cut out.

    None: stored images are of their size already, cut from pictures as large as covers it.
    """

    size: int | None
    edge: int | None
    interpolation: str


class EpochTransform(ABC):
    """A transform that makes each row of an epoch from (seed, epoch, index) alone; a dataclass with the field `epoch`.

    The same in any worker, on any number of ranks, and after a resume. `epoch` is a number in shared memory, so that
    persistent workers see `set_epoch`.
    """

    epoch: Tensor
    mean: tuple[float, ...] | None = None  # of images, by which they are normalised
    std: tuple[float, ...] | None = None
    label_names: tuple[str, ...] | None = None  # of the classes, where no feature of the dataset says them

    def at_epoch(self, epoch: int) -> Self:
        """The same with the rows of one epoch, whatever `set_epoch` says to this one."""
        return replace(cast(Any, self), epoch=torch.tensor(epoch))

    def one_view(self) -> Self:
        """The same with one view of each row, where there are several."""
        return self

    @abstractmethod
    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        """Stored columns -> the columns of a batch, with B rows each."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)


class ImageEpochTransform(EpochTransform):
    """The views of images: `pixel_values`, normalised by `mean` and `std`, `labels`, `index` and `view`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    @abstractmethod
    def num_views(self) -> int:
        """How many views an image has; 0 where they cannot be numbered."""

    @property
    @abstractmethod
    def resizing(self) -> Resizing:
        """What has been done to a picture before it is normalised, where there is no augmentation."""

    @abstractmethod
    def clean(self) -> Self:
        """The same without augmentation."""


def epoch_zero() -> Tensor:
    """What `EpochTransform.epoch` starts as."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


class ImageStream(torch.utils.data.IterableDataset):
    """A split that is read as it comes: an `IterableDataset` of `datasets` and the transform of its rows.

    Shuffled through a buffer when `buffer` is set. The n-th image that a loader's worker reads in an epoch has the view
    of (seed, epoch, n, worker): the same after a resume, another with another number of workers. `len()` is known where
    the data set says it (the Hub does, folders do not); without it Trainer needs `max_steps`. No teacher can scan it.
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
            raise TypeError("the number of images in this stream is not known: give max_steps")
        return self.length

    def set_epoch(self, epoch: int) -> None:
        self.rows.set_epoch(epoch)
        self.transform.set_epoch(epoch)


class OneEpoch(torch.utils.data.IterableDataset):
    """As many rows of a stream as its `__len__` says that an epoch has, though it may go on without end."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.rows), len(self.rows))

    def __getitem__(self, row: int) -> Any:  # one that is to be named
        return next(islice(iter(self.rows), row, None))

    def __len__(self) -> int:
        return len(self.rows)


def refuse_streams(dataset: Any) -> None:
    """Raise ValueError for a training set that a scan cannot read, since it may have no end."""
    if isinstance(dataset, ImageStream) or not has_length(dataset):
        raise ValueError(
            "a stream would be read whole by a teacher scan, however long it is: load the data without streaming, or "
            "give thresholds=(low, high)"
        )


def stream_length(rows: IterableDataset) -> int | None:
    """How many images a stream has, where its data set says so."""
    splits: Any = rows.info.splits or {}
    known = splits.get(str(rows.split)) if isinstance(splits, SplitDict) else None
    return known.num_examples or None if known is not None else None


def epoch_transform(dataset: Any) -> EpochTransform | None:
    """The `EpochTransform` of an `ImageStream`, or the one that `set_transform` gave a dataset, if it is one."""
    if isinstance(dataset, ImageStream):
        return dataset.transform
    transform = dataset.format["format_kwargs"].get("transform") if isinstance(dataset, Dataset) else None
    return transform if isinstance(transform, EpochTransform) else None


def image_transform(dataset: Any) -> ImageEpochTransform | None:
    """`epoch_transform` where it makes images."""
    transform = epoch_transform(dataset)
    return transform if isinstance(transform, ImageEpochTransform) else None
