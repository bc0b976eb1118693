"""Datasets that are too large to keep decoded: images are decoded in the data loader, or streamed.

B rows, H height, W width.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.transforms import v2

from hfkd.data.columns import LABEL_COLUMNS, find_column
from hfkd.data.epochs import ImageEpochTransform, Resizing, epoch_zero
from hfkd.data.images import as_stored, check_labels, pick_splits, picture
from hfkd.data.splits import load_splits
from hfkd.utils.argument_types import Positive, fitting

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CENTRE = 0.875  # share of the resized image in the centre crop of evaluation: 224 of 256


@dataclass
class LargeImageTransform(ImageEpochTransform):
    """ImageNet's augmentation: RandomResizedCrop and flip; in evaluation resize to H / 0.875 and centre crop.

    torchvision's transforms are applied to each image, as a function of (seed, epoch, index). Reads the columns
    `image`, `labels` and `index`; `view` is -1, because these views cannot be numbered, or 0 without augmentation.
    """

    size: int = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    augment: bool = False
    flip: bool = True
    seed: int = 0
    epoch: Tensor = field(default_factory=epoch_zero, repr=False)

    def __post_init__(self) -> None:
        self.check_std()
        fitting("LargeImageTransform", "size", self.size, Positive)
        crop = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(0.5 if self.flip else 0.0)]
        centre = [v2.Resize(self.resizing.edge), v2.CenterCrop(self.size)]  # bilinear
        pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)]
        self._pipeline = v2.Compose([*(crop if self.augment else centre), *pixels])

    @property
    def num_views(self) -> int:
        return 0 if self.augment else 1

    @property
    def resizing(self) -> Resizing:
        return Resizing(self.size, round(self.size / CENTRE), "bilinear")

    def clean(self) -> Self:
        return replace(self, augment=False)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Tensor]:
        index, images = torch.tensor(batch["index"]), []
        with torch.random.fork_rng(devices=[]):
            for value, row, seed in zip(batch["image"], batch["index"], self.seeds(batch["index"]), strict=True):
                torch.default_generator.manual_seed(seed)
                images.append(self._pipeline(picture(value, row)).as_subclass(Tensor))
        return {
            "pixel_values": torch.stack(images),  # [B, 3, H, W]
            "labels": torch.tensor(batch["labels"]),
            "index": index,
            "view": torch.full_like(index, -1 if self.augment else 0),
        }


def load_large_images(
    name_or_path: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    name: str | None = None,
    streaming: bool = False,
) -> tuple[Any, Any]:
    """Train and test split with the columns `image` (encoded), `labels` and, unless streamed, `index`.

    Takes any Hub id or folder. Raises the ValueErrors of `load_images`, but for a broken image only when it is decoded.
    """
    loaded = load_splits(name_or_path, name, streaming)
    return tuple(
        _columns(split, image_column, label_column)
        for split in pick_splits(loaded, name_or_path, train_split, test_split)
    )


def _columns(rows: Any, image_column: str | None, label_column: str | None) -> Any:
    if rows.features is None:
        raise ValueError("this stream has no information about its columns: load the data without streaming")
    label_column = find_column(rows, label_column, LABEL_COLUMNS, "label_column")
    check_labels(rows.features[label_column], label_column)
    return as_stored(rows, image_column, label_column, LABEL_COLUMNS)
