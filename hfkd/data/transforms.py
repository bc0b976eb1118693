"""Batched image transforms for `Dataset.set_transform`, without PIL and without random state in workers.

B images, H height, W width. A view is a crop offset and a flip of an image; there are (2 pad + 1)² · 2.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hfkd.data.epochs import ImageEpochTransform, Resizing, epoch_zero
from hfkd.data.randaugment import strong_views
from hfkd.data.view_ids import SEEDS, view_ids
from hfkd.utils.devices import send
from hfkd.utils.numbers import CIFAR_MEAN, CIFAR_STD

HEADER = 4  # bytes before the pixels of a packed image


@dataclass
class ImageTransform(ImageEpochTransform):
    """Zero-pad, crop, flip and normalise a batch of images as stored by `hfkd.data.images`.

    The padding is black before normalisation, as in torchvision's RandomCrop on the image. Returns `pixel_values` [B,
    3, H, W] float32, `labels` [B], `index` [B], and `view` [B], the number of the view below `num_views`; without
    augmentation that of the uncropped image. With `views=2`, there are two views per image, [B, 2, 3, H, W]: the second
    has a separate crop and flip and a strong augmentation (`hfkd.data.randaugment`), and the number -1.
    """

    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD
    augment: bool = False
    padding: int = 4
    flip: bool = True
    seed: int = 0
    views: int = 1
    epoch: Tensor = field(default_factory=epoch_zero, repr=False)

    def __post_init__(self) -> None:
        self.check_std()
        if self.padding < 0:
            raise ValueError(f"ImageTransform: padding={self.padding} must be 0 or more pixels")
        if self.views not in (1, 2):
            raise ValueError(f"ImageTransform: views={self.views} must be 1, or 2 for a weak and a strong one")

    def one_view(self) -> Self:
        return replace(self, views=1)

    def clean(self) -> Self:
        return replace(self, augment=False)

    @property
    def num_views(self) -> int:
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    @property
    def resizing(self) -> Resizing:
        return Resizing(None, None, "bicubic")  # as in hfkd.data.images.decode

    def views_of(self, index: Tensor) -> Tensor:
        """The view of each image in this epoch, [B] both; without augmentation the centre crop, not flipped."""
        if self.augment:
            return view_ids(index, self.seed, self.epoch, self.num_views)
        return torch.full_like(index, ((2 * self.padding + 1) ** 2 // 2) * (2 if self.flip else 1))

    @property
    def view_set(self) -> str:
        """A description of the view numbers: transforms with the same description have the same views."""
        return f"padding {self.padding}, flip {self.flip}, mean {self.mean}, std {self.std}"

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Tensor]:
        index = torch.tensor(batch["index"])
        columns = unpack_pixels(batch["pixels"]), torch.tensor(batch["labels"]), index
        return self.rows(*columns, self.views_of(index))

    def rows(self, images: Tensor, labels: Tensor, index: Tensor, views: Tensor) -> dict[str, Tensor]:
        """A batch of images [B, 3, H, W] uint8, transformed to their `views` [B] on their device."""
        seen = crop_and_flip(images, views, self.padding, self.flip) if self.augment else images
        if self.augment and self.views == 2:
            strong = self._strong(images, index)
            seen, views = torch.stack([seen, strong], 1), torch.stack([views, torch.full_like(views, -1)], 1)
        scale, shift = _affine(self.mean, self.std, images.device)
        # addcmul is ten times slower with broadcasting
        return {"pixel_values": seen.float().mul_(scale).add_(shift), "labels": labels, "index": index, "view": views}

    def _strong(self, images: Tensor, index: Tensor) -> Tensor:
        second = view_ids(index, self.seed, self.epoch, self.num_views, stream=1)
        seeds = view_ids(index, self.seed, self.epoch, SEEDS, stream=2)
        return strong_views(crop_and_flip(images, second, self.padding, self.flip), seeds)


@lru_cache
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """[3, 1, 1] both: a byte times the first plus the second is the normalised value."""
    scale = 1 / (255 * torch.tensor(std)).view(-1, 1, 1)
    shift = -(torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1)
    return send(scale, device), send(shift, device)


def pack_pixels(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> height and width as two little-endian uint16, then the three planes; see `unpack_pixels`."""
    return np.array(image.shape[:2], dtype="<u2").tobytes() + image.transpose(2, 0, 1).tobytes()


def unpack_pixels(pixels: list[bytes]) -> Tensor:
    """B packed images of the same size -> [B, 3, H, W] uint8. Raises ValueError if their sizes differ."""
    if len({image[:HEADER] for image in pixels}) > 1:
        sizes = sorted({packed_size(image) for image in pixels})
        raise ValueError(
            f"the images of a batch have different sizes {sizes}: load all of them with the same image_size"
        )
    height, width = packed_size(pixels[0])
    rows = np.frombuffer(bytearray(b"".join(pixels)), dtype=np.uint8).reshape(len(pixels), -1)
    return torch.from_numpy(rows)[:, HEADER:].reshape(-1, 3, height, width)


def packed_size(pixels: bytes) -> tuple[int, int]:
    """Height and width of a packed image."""
    height, width = np.frombuffer(pixels[:HEADER], dtype="<u2")
    return int(height), int(width)


def crop_and_flip(images: Tensor, views: Tensor, padding: int, flip: bool) -> Tensor:
    """Crop the zero-padded images at the offset of their view, and flip every other view. [B, 3, H, W] both."""
    b, channels, h, w = images.shape
    device = images.device
    mirrored = (views % 2 == 1) & flip
    offset = views // 2 if flip else views
    top, left = offset // (2 * padding + 1), offset % (2 * padding + 1)
    columns = torch.arange(w, device=device).expand(b, w)
    columns = torch.where(mirrored[:, None], w - 1 - columns, columns) + left[:, None]  # [B, W]
    rows = torch.arange(h, device=device) + top[:, None]  # [B, H]
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    # One gather per plane is five times faster than indexing rows and columns.
    place = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(b, 1, h * w)
    return padded.flatten(2).gather(2, place.expand(b, channels, h * w)).view(b, channels, h, w)
