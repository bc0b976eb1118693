"""Collation of rows with images as tensors, arrays or PIL images.

B rows, V views of each image.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from hfkd.data.labels import check_shares, refuse_words
from hfkd.data.used_columns import LABELS, label_column

RGB = 3  # channels
GREY = ("L", "1")  # modes of pictures


class ImageCollator:
    """Stack `pixel_values`, `labels` and, if present, `index`, `view` and `columns`; leave out other columns.

    Instead of `labels` a row may have `label`, or no label. A pair (image, label), as in torchvision's datasets, is
    accepted too. `columns` are further inputs of the network and further labels: numbers, or tensors of one shape.
    uint8 images and PIL images (colour images as RGB) become float in [0, 1], or are prepared by `processor` (a Hugging
    Face image processor) if given. Float images are taken as already prepared: [3, H, W], or [H, W, 3] if only that is
    possible. `channels=3` converts grey images to RGB. Labels are class ids, or vectors if MixUp or CutMix mixed them
    (`shares`: they must sum to 1). A complete batch, as from `ResidentImages`, is returned unchanged. Raises ValueError
    for a missing column, values of different shapes, integer pixels other than uint8, or float labels that are not
    shares of classes.
    """

    def __init__(
        self, processor: Any = None, columns: Iterable[str] = (), shares: bool = True, channels: int | None = None
    ) -> None:
        self.processor, self.shares, self.channels = processor, shares, channels
        self.columns = sorted({"index", "view", *columns} - {"pixel_values", *LABELS})

    def __call__(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Tensor]) -> dict[str, Tensor]:
        if isinstance(rows, Mapping):
            return dict(rows)
        rows = [_by_name(row) for row in rows]
        labels = _labels_column(rows[0])
        batch = self._images([row["pixel_values"] for row in rows])
        if labels is not None:
            refuse_words(labels, rows[0][labels])
            batch["labels"] = _stacked(labels, [row[labels] for row in rows])
        for column in (c for c in self.columns if c in rows[0]):
            batch[column] = _stacked(column, [row[column] for row in rows])
        given = batch.get("labels")
        if self.shares and given is not None and given.is_floating_point() and (given.ndim, given.is_cpu) == (2, True):
            check_shares(given)
        return batch

    def _images(self, images: list[Any]) -> dict[str, Tensor]:
        """The images, with whatever else the processor makes of them (SigLIP 2's: which patches there are)."""
        images = [self._in_colour(image) for image in images]
        if self.processes(images[0]):
            made = self.processor(images, return_tensors="pt")
            return {name: value for name, value in made.items() if isinstance(value, Tensor) and name not in LABELS}
        return {"pixel_values": self._stacked_images(images)}

    def _stacked_images(self, images: list[Any]) -> Tensor:
        tensors = [image if isinstance(image, Tensor) else _to_tensor(image) for image in images]
        if len({t.shape for t in tensors}) > 1:
            shapes = sorted({tuple(t.shape) for t in tensors})
            raise ValueError(f"the images of a batch have different shapes {shapes}: resize them in the dataset")
        stacked = torch.stack(tensors)
        if stacked.dtype == torch.uint8:
            return F.to_dtype(stacked, torch.float32, scale=True)
        if not stacked.is_floating_point():
            raise ValueError(
                f"the images have dtype {stacked.dtype}, whose range is unknown: convert them to uint8, or float in "
                "[0, 1]"
            )
        return stacked.float() if stacked.dtype == torch.float64 else stacked

    def processes(self, image: Any) -> bool:
        """Whether the processor makes the tensor of such an image, and it is not one already."""
        return self.processor is not None and not isinstance(image, Tensor) and not _is_float(image)

    def _in_colour(self, image: Any) -> Any:
        """Convert pictures with a palette, an alpha channel or another colour space (CMYK, YCbCr, HSV) to RGB."""
        if isinstance(image, list):
            return np.asarray(image)
        kept = ("RGB",) if self.channels == RGB else ("RGB", *GREY)
        if not isinstance(image, Image.Image) or image.mode in kept:
            return image
        if not image.mode.startswith(("I", "F")):
            return image.convert("RGB")
        if self.processor is not None:
            raise ValueError(
                f"a picture of 16-bit or float pixels (mode {image.mode}): image processors read bytes, and would clip "
                "them; scale it to 8 bits, or give tensors that are ready"
            )
        return image


def views_as_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with several views per image, flattened for networks: the first view of each image, then the second, ...

    `pixel_values` [B, V, 3, H, W] -> [V B, 3, H, W], `view` [B, V] -> [V B], `index` and any other input [B, ...] ->
    [V B, ...]; labels stay [B].
    """
    images = batch.get("pixel_values")
    if images is None or images.ndim != 5:
        return dict(batch)
    rows = {name: batch[name].transpose(0, 1).flatten(0, 1) for name in ("pixel_values", "view") if name in batch}
    for name, values in batch.items():
        if name not in (*rows, "labels") and isinstance(values, Tensor) and values.shape[:1] == images.shape[:1]:
            rows[name] = values.repeat(images.shape[1], *[1] * (values.ndim - 1))
    return {**batch, **rows}


def _by_name(row: Any) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], (Image.Image, Tensor, np.ndarray)):
        return {"pixel_values": row[0], "labels": row[1]}
    raise ValueError(
        f"the dataset's rows are of type {type(row).__name__}: make each row a dict of 'pixel_values' and 'labels', "
        "such as {'pixel_values': image, 'labels': label}, or pass a data_collator that returns such a batch"
    )


def _labels_column(row: Mapping[str, Any]) -> str | None:
    """The name of a row's label column, or None. Raises ValueError for rows without an image."""
    if "pixel_values" not in row:
        raise ValueError(
            f"the dataset's rows have no 'pixel_values' but {sorted(row)}: rename the column, or load images with "
            "hfkd.data.load_images, and masks with hfkd.data.masks.load_masks"
        )
    return label_column(row)


def _is_float(image: Any) -> bool:
    return isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating)


def _to_tensor(image: Any) -> Tensor:
    """A tensor from a PIL image, an array [H, W, 3], [3, H, W] (as from image processors), or [1, 3, H, W]."""
    if not isinstance(image, np.ndarray):
        return F.to_image(image)
    image = image[0] if image.ndim == 4 and len(image) == 1 else image
    if image.ndim == 3 and image.shape[0] in (1, RGB) and (_is_float(image) or image.shape[-1] not in (1, RGB, 4)):
        return torch.from_numpy(image)
    return F.to_image(image)


def _stacked(column: str, values: list[Any]) -> Tensor:
    try:
        stacked = torch.stack([torch.as_tensor(value) for value in values])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the column {column!r} cannot be stacked ({error}): make its values numbers or tensors of one shape, or "
            "pass a custom data_collator"
        ) from error
    if stacked.dtype in (torch.uint16, torch.uint32, torch.uint64):  # for which torch has few operations
        return stacked.long()
    return stacked.float() if stacked.dtype == torch.float64 else stacked


def with_wrapped(collate: Any) -> Iterator[Any]:
    """A collator, and those that it wraps (`collate`), from the outermost on."""
    while collate is not None:
        yield collate
        collate = getattr(collate, "collate", None)
