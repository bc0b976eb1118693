"""Images with segmentation masks as PNG, arrays or colours, and their augmentation.

B rows, H height, W width.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from hfkd.data.collate import ImageCollator
from hfkd.data.epochs import EpochTransform, epoch_zero
from hfkd.data.images import as_stored, pick_splits, picture
from hfkd.data.large_images import IMAGENET_MEAN, IMAGENET_STD
from hfkd.data.mask_processors import refuse_moved
from hfkd.data.splits import load_splits
from hfkd.data.used_columns import label_column
from hfkd.utils.argument_types import Positive, fitting

UNLABELLED = 255  # the label of pixels without a class, as in transformers and torchvision
MASK_COLUMNS = ("label", "labels", "annotation", "mask", "segmentation_mask", "semantic_class_labels")
Palette = Mapping[tuple[int, int, int], int]  # the class of each colour, 255 for unlabelled
BITS = 20  # of each part of a colour as a number: more than any part has


class RandomScale(v2.Transform):
    """Resize to `size` (height, width) times a factor, uniform in the range `scale`.

    torchvision's ScaleJitter compares heights with the target width, which is only correct for squares.
    """

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        return {"size": [max(1, round(side * factor)) for side in self.size]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return v2.functional.resize(inpt, params["size"], antialias=True)


@dataclass
class MaskTransform(EpochTransform):
    """Joint transforms of image and mask by torchvision.transforms.v2, as a function of (seed, epoch, index).

    In training, images are resized to `size` times a random factor in `scale`, cropped to `size` at random (padded with
    black and 255 if they are smaller), and flipped. Otherwise they are resized to `size`, or not resized without it.
    The interpolation is bilinear for images and nearest for masks. Reads `image`, `labels` and `index`; returns
    `pixel_values` [B, 3, H, W], `labels` [B, H, W] and `index`. `label_names` are the class names. `reduce_labels`:
    class 0 means unlabelled, and the others start at 1.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    augment: bool = False
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    seed: int = 0
    reduce_labels: bool = False
    palette: Palette | None = field(default=None, repr=False)
    label_names: tuple[str, ...] | None = None
    epoch: Tensor = field(default_factory=epoch_zero, repr=False)

    def __post_init__(self) -> None:
        self.check_std()
        fitting("MaskTransform", "scale[0]", self.scale[0], Positive)
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"MaskTransform: scale={self.scale} must be (smallest, largest)")
        if self.augment and self.size is None:
            raise ValueError("MaskTransform: augment=True needs a crop size: set size=(height, width)")
        self._views = v2.Compose(self._drawn() if self.augment else self._whole())
        self._pixels = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])

    def _whole(self) -> list[Any]:
        return [v2.Identity() if self.size is None else v2.Resize(self.size)]

    def _drawn(self) -> list[Any]:
        assert self.size is not None
        fill: Any = {tv_tensors.Image: 0, tv_tensors.Mask: UNLABELLED}
        return [
            RandomScale(self.size, self.scale),
            v2.RandomCrop(self.size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(0.5 if self.flip else 0.0),
        ]

    def clean(self) -> Self:
        return replace(self, augment=False)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        rows = zip(batch["image"], batch["labels"], batch["index"], self.seeds(batch["index"]), strict=True)
        with torch.random.fork_rng(devices=[]):
            views = [self._view(*row) for row in rows]
        return {
            "pixel_values": [image for image, _ in views],  # the collator refuses images of different sizes
            "labels": [mask for _, mask in views],
            "index": batch["index"],
        }

    def _view(self, image: Any, mask: Any, row: int, seed: int) -> tuple[Tensor, Tensor]:
        seen, ids = v2.functional.to_image(picture(image, row)), mask_ids(mask, row, self.palette)
        if seen.shape[-2:] != ids.shape:
            raise ValueError(
                f"row {row} has a mask of {tuple(ids.shape)} pixels for an image of {tuple(seen.shape[-2:])}: pass a "
                "mask of the same size"
            )
        torch.default_generator.manual_seed(seed)
        reduced = _without_zero(ids) if self.reduce_labels else ids
        seen, labels = self._views(seen, tv_tensors.Mask(reduced))
        return self._pixels(seen).as_subclass(Tensor), labels.as_subclass(Tensor).long()


def _without_zero(ids: Tensor) -> Tensor:
    """Class 0 and 255 become 255, and class k becomes k - 1."""
    none = (ids == 0) | (ids == UNLABELLED)
    return torch.where(none, UNLABELLED, ids.long() - 1)


def mask_ids(value: Any, row: int, palette: Palette | None = None) -> Tensor:
    """The classes [H, W] of a mask.

    value: a tensor, an array or nested lists, a PIL image, or an image file as stored by `datasets`. A PIL image with
    one channel, or with its own palette, holds class ids; a colour image needs a `palette`. With a `palette` every mask
    is read by its colours, also one of grey levels or with its own palette. Raises ValueError for a mask that cannot be
    read or is a JPEG file, for colours without a palette, and for a colour that is not in it.
    """
    array = _array(value, row, in_colour=palette is not None)
    if palette is not None and array.ndim == 2:
        array = np.stack([array] * 3, -1)
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        return _by_colour(array[..., :3], row, palette)
    if array.ndim != 2 or array.dtype.kind not in "uib":
        raise ValueError(
            f"the mask of row {row} has the shape {array.shape} and type {array.dtype}: pass integers [height, "
            f"width], one class per pixel, and {UNLABELLED} for unlabelled pixels"
        )
    return torch.from_numpy(array.astype(np.uint8 if array.dtype == np.uint8 else np.int64))  # a writable copy


def _array(value: Any, row: int, in_colour: bool) -> np.ndarray:
    try:
        if isinstance(value, Tensor):
            return value.numpy()
        if isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        if isinstance(value, dict):
            value = ImageFeature().decode_example(value)
        if value is None:
            raise ValueError("there is none")
        if getattr(value, "format", None) == "JPEG":
            raise ValueError("it is a JPEG file, whose compression changes classes at their edges: take the PNG files")
        if in_colour and isinstance(value, Image.Image) and not value.mode.startswith(("I", "F")):
            value = value.convert("RGB")
        return np.asarray(value)  # for an image with its own palette, its indices
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the mask of row {row} cannot be used: {error}; replace it, or remove the row") from error


def _by_colour(colours: np.ndarray, row: int, palette: Palette | None) -> Tensor:
    # Colours as numbers in their order: to sort rows of three takes four seconds for three million pixels.
    red, green, blue = colours.reshape(-1, 3).T.astype(np.int64)
    found, place = np.unique((red << 2 * BITS) + (green << BITS) + blue, return_inverse=True)
    shades = [(code >> 2 * BITS, code >> BITS & (1 << BITS) - 1, code & (1 << BITS) - 1) for code in found.tolist()]
    if palette is None:
        raise ValueError(
            f"the mask of row {row} is in colour, with {len(shades)} colours such as {shades[0]}: pass the class of "
            f'each (palette=, --palette: a JSON file such as {{"128,0,0": 0, "0,0,0": {UNLABELLED}}})'
        )
    unknown = [shade for shade in shades if shade not in palette]
    if unknown:
        raise ValueError(
            f"the mask of row {row} has the colour {unknown[0]}, which is not in the palette: add it, with "
            f"{UNLABELLED} if it means unlabelled"
        )
    classes = np.array([palette[shade] for shade in shades], dtype=np.int64)
    return torch.from_numpy(classes[place.reshape(-1)].reshape(colours.shape[:2]))


class MaskCollator:
    """Wraps `collate` for rows whose labels are masks: PIL images, arrays or tensors, as in `mask_ids`.

    Raises ValueError where an image processor in it would part the images from their masks (`mask_processors`).
    """

    def __init__(self, collate: Callable[..., Any]) -> None:
        self.collate = collate
        self._sizes: set[tuple[int, ...]] = set()  # of images, and of what is made of them, that were looked at

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        batch = self.collate([self._row(row) for row in rows])
        if isinstance(self.collate, ImageCollator) and batch.get("labels") is not None:
            for row in (row for row in rows if isinstance(row, Mapping)):
                self._look(self.collate, row["pixel_values"], tuple(batch["pixel_values"].shape[-2:]))
        return batch

    def _look(self, collate: ImageCollator, image: Any, made: tuple[int, ...]) -> None:
        if not collate.processes(np.asarray(image) if isinstance(image, list) else image):
            return
        size = image.size[::-1] if isinstance(image, Image.Image) else _height_and_width(np.shape(image))
        if (*size, *made) not in self._sizes:
            refuse_moved(collate.processor, size, made)
            self._sizes.add((*size, *made))

    def _row(self, row: Any) -> Any:
        name = label_column(row) if isinstance(row, Mapping) else None
        if name is None or isinstance(row[name], Tensor):
            return row
        return {**row, name: mask_ids(row[name], int(row.get("index", -1)))}


def _height_and_width(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of an image [H, W], [H, W, C] or [C, H, W]."""
    return shape[-2:] if len(shape) == 2 or shape[-1] not in (1, 3, 4) else shape[-3:-1]


def load_masks(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    name: str | None = None,
) -> tuple[Dataset, Dataset]:
    """Train and test split with the columns `image` and `labels` (both as stored) and `index`; see `MaskTransform`.

    Takes any Hub id or folder. Raises ValueError for a missing column or split.
    """
    splits = pick_splits(load_splits(name_or_path, name), name_or_path, train_split, test_split)
    train, test = (as_stored(rows, image_column, label_column, MASK_COLUMNS) for rows in splits)
    return train, test


def read_palette(path: str) -> Palette:
    """The class of each colour, from a JSON file {"128,0,0": 0, ...}. Raises ValueError for any other file."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {tuple(int(part) for part in colour.split(",")): int(number) for colour, number in given.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} is not a palette ({error}): give a JSON file such as {{"128,0,0": 0}}') from error
    if not all(len(colour) == 3 and 0 <= number <= UNLABELLED for colour, number in found.items()):
        raise ValueError(f"{path} is not a palette: colours must be three numbers, and classes from 0 to {UNLABELLED}")
    return found  # type: ignore[return-value]


def read_label_names(path: str) -> tuple[str, ...]:
    """The class names from a JSON file as on the Hub: {"0": "sky", "1": "building", ...}, or a list."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        named = dict(enumerate(given)) if isinstance(given, list) else {int(k): v for k, v in given.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f'{path} names no classes ({error}): give a JSON file such as {{"0": "sky"}}') from error
    if sorted(named) != list(range(len(named))) or len(named) < 2:
        raise ValueError(f"{path} has the class ids {sorted(named)[:8]}: they must be 0, 1, 2, ...")
    return tuple(str(named[k]) for k in range(len(named)))
