"""Small image datasets held as tensors, so that a batch needs a few tensor operations and no Python code per image.

N images, B rows of a batch, H height, W width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hfkd.data.collate import ImageCollator, with_wrapped
from hfkd.data.columns import whole_column
from hfkd.data.epochs import datasets_in
from hfkd.data.first_rows import sets_by_name
from hfkd.data.transforms import ImageTransform, unpack_pixels
from hfkd.utils.devices import OnHost, send

LARGEST = 1 << 30  # default limit in bytes of pixels


@dataclass(frozen=True)
class HostRows(OnHost):
    """A batch's `index` [B] and `view` [B], or [B, V]."""

    index: Tensor
    view: Tensor


class ResidentImages(Dataset):
    """A dataset of `load_images` whose pixels, labels and indices are also tensors, on any device (`move`).

    With an `ImageTransform`, a DataLoader gets whole batches from it, on that device: images, views and order are the
    same, bit for bit, as from the dataset itself; batches on a GPU have their `HostRows` as `host_rows`. The collator
    must return such a batch unchanged, as `ImageCollator` does; in a trainer any other gets its rows. Datasets that are
    derived from it (select, map, another transform) behave like plain datasets.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset.data, dataset.info, dataset.split, dataset._indices, dataset._fingerprint)
        style = dataset.format
        self.set_format(style["type"], style["columns"], style["output_all_columns"], **style["format_kwargs"])
        # From self, not from `dataset`, because Dataset creates a new table object with other metadata.
        self._tensors = _Tensors(self)

    def move(self, device: torch.device) -> None:
        """Move the tensors to `device`, where batches are then made; on a GPU only for a DataLoader without workers."""
        self._tensors.move(device)

    def __getitems__(self, keys: list[int]) -> Any:
        transform = self.format["format_kwargs"].get("transform")
        if type(transform) is not ImageTransform or not self._tensors.are_of(self):
            return super().__getitems__(keys)
        return self._tensors.batch(keys, transform)


class _Tensors:
    """The columns of a decoded dataset: pixels [N, 3, H, W] uint8, labels and index [N]."""

    def __init__(self, dataset: Dataset) -> None:
        stored = dataset.with_format(None)
        self.pixels = torch.cat([unpack_pixels(part["pixels"]) for part in stored.iter(batch_size=4096)])
        self.labels, self.index = (torch.as_tensor(whole_column(stored, name)) for name in ("labels", "index"))
        self._source = _tables(dataset)
        self._index_on_host = self.index
        self._views: dict[str, tuple[Any, Tensor]] = {}

    def are_of(self, dataset: Dataset) -> bool:
        """Whether the dataset still has the rows and columns from which these tensors were made."""
        return all(mine is its for mine, its in zip(self._source, _tables(dataset), strict=True))

    def move(self, device: torch.device) -> None:
        self.pixels, self.labels, self.index = (t.to(device) for t in (self.pixels, self.labels, self.index))
        self._views = {}

    def batch(self, keys: list[int], transform: ImageTransform) -> dict[str, Any]:
        on_host = torch.tensor(keys)
        rows = send(on_host, self.index.device)
        views = self._views_of_all(transform, self.index)[rows]
        made: dict[str, Any] = transform.rows(self.pixels[rows], self.labels[rows], self.index[rows], views)
        if rows.device != on_host.device:
            view = self._views_of_all(transform, self._index_on_host)[on_host]
            if made["view"].ndim == 2:
                view = torch.stack([view, torch.full_like(view, -1)], 1)
            made["host_rows"] = HostRows(self._index_on_host[on_host], view)
        return made

    def _views_of_all(self, transform: ImageTransform, index: Tensor) -> Tensor:
        """The view of every image [N] in the epoch, computed once per epoch instead of in each batch."""
        of = repr(transform), int(transform.epoch)
        known = self._views.get(index.device.type)
        if known is None or known[0] != of:
            known = self._views[index.device.type] = of, transform.views_of(index)
        return known[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Tensors":
        return self  # `datasets` copies a dataset for each change of its format


@dataclass(frozen=True)
class RowByRow:
    """Calls `collate` on the rows of batches that `ResidentImages` have made."""

    collate: Callable[[Any], Any]

    def __call__(self, rows: Any) -> Any:
        if isinstance(rows, Mapping):
            columns = {name: values for name, values in rows.items() if isinstance(values, Tensor)}
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return self.collate(rows)


def takes_batches(collate: Any) -> bool:
    """Whether a collator, which may be wrapped, is an `ImageCollator`, which returns a whole batch unchanged."""
    return any(isinstance(one, ImageCollator) for one in with_wrapped(collate))


def as_collator_takes_it(collate: Any, dataset: Any) -> Any:
    """The collator for batches of `dataset`: a user's gets the rows of a batch that `ResidentImages` have made."""
    made_whole = any(isinstance(one, ResidentImages) for one in datasets_in(dataset))
    return RowByRow(collate) if made_whole and not takes_batches(collate) else collate


def pins_memory(datasets: Mapping[str, Any], collate: Any, device: torch.device, workers: int) -> bool:
    """Whether a loader may pin its batches; moves the images of `ResidentImages` to the training device first, unless
    worker processes load them or a user's `collate` gets them one by one.

    Nothing is pinned for training on a CPU or on Apple's GPUs (torch warns of it), nor if images are on the device
    already.
    """
    if device.type == "cpu":
        return False
    parts = [part for given in datasets.values() for part in sets_by_name(given).values()]
    here = not workers and takes_batches(collate)
    resident = [part for part in parts if isinstance(part, ResidentImages) and here]
    for part in resident:
        part.move(device)
    return not resident and device.type != "mps"


def _tables(dataset: Dataset) -> tuple[Any, Any]:
    """The Arrow tables of rows and of their order. They are immutable, so that the same table has the same content."""
    return dataset.data.table, None if dataset._indices is None else dataset._indices.table


def resident(dataset: Dataset, largest: int = LARGEST) -> Dataset:
    """`dataset` as `ResidentImages` if its pixels take at most `largest` bytes, otherwise unchanged."""
    size = len(dataset) * len(dataset.with_format(None)[0]["pixels"])
    return ResidentImages(dataset) if size <= largest else dataset
