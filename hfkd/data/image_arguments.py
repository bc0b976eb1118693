"""The flags that define an image dataset, and its two splits."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from hfkd.data.columns import label_names
from hfkd.data.epochs import ImageStream, stream_length
from hfkd.data.few_images import few_images, warn_of_sorted_stream
from hfkd.data.few_labels import few_labels
from hfkd.data.images import load_images
from hfkd.data.large_images import LargeImageTransform, load_large_images
from hfkd.data.longtail import long_tail
from hfkd.data.resident import resident
from hfkd.data.transforms import ImageTransform
from hfkd.utils.dependent_settings import refuse_without_effect
from hfkd.utils.flags import at_least_one, flag
from hfkd.utils.numbers import CIFAR_MEAN, CIFAR_STD

logger = logging.getLogger(__name__)

IMAGENET_SIZE = 224


@dataclass
class ImageDataArguments:
    """Training and evaluation images. The defaults are CIFAR-100 from the Hub."""

    dataset_name: str = flag("uoft-cs/cifar100", "Hub id or local folder of the images.")
    dataset_config: str | None = flag(None, "Configuration of the dataset, if it has several.")
    train_split: str = flag("train", "Split to train on.")
    test_split: str | None = flag(None, "Split to evaluate on; unset: test or validation.")
    image_column: str | None = flag(None, "Column of the images; unset: found by its name.")
    label_column: str | None = flag(None, "Column of the labels; unset: found by its name.")
    image_size: int | None = flag(None, "Resize images to this size; unset: that of the first image.")
    image_mean: list[float] = flag(lambda: list(CIFAR_MEAN), "Mean of each channel, of pixels from 0 to 1.")
    image_std: list[float] = flag(lambda: list(CIFAR_STD), "Standard deviation of each channel.")
    crop_padding: int = flag(4, "Padding of training images in pixels before the random crop.")
    flip: bool = flag(True, "Flip half of the training images horizontally.")
    views: int = flag(1, "2: each training image also with a strong augmentation (RandAugment).")
    resident: bool = flag(
        True, "Hold up to 1 GiB of images in one tensor, on the GPU if there is one: same results, but faster."
    )
    resized_crop: bool = flag(
        False, "Decode images in the data loader and augment them as for ImageNet; image_size is 224 if unset."
    )
    streaming: bool = flag(False, "With resized_crop: stream the images, without storing them on disk.")
    shuffle_buffer: int = flag(10_000, "With streaming: the size of the shuffle buffer in images.")
    imbalance_factor: float | None = flag(
        None, "Make the training set long-tailed: size of the smallest class divided by that of the largest."
    )
    labelled_images: int | None = flag(
        None, "Keep the labels of this many training images; the others are only distilled."
    )
    max_train_images: int | None = flag(
        None,
        "Use the first images only, for a quick try; of a dataset sorted by class, evenly spaced ones, "
        "unless it is streamed.",
    )
    max_test_images: int | None = flag(
        None,
        "Evaluate on the first images only; of a dataset sorted by class, on evenly spaced ones, unless it "
        "is streamed.",
    )

    def __post_init__(self) -> None:
        at_least_one(self, "image_size", "views", "labelled_images", "max_train_images", "max_test_images")
        refuse_without_effect(self)

    def load(self, seed: int = 0) -> tuple[Any, Any]:
        """The training images, with random augmentation in each epoch, and the test images, normalised only."""
        if self.streaming and (not self.resized_crop or self.imbalance_factor is not None):
            raise ValueError(
                "streaming=True needs resized_crop, and no imbalance_factor: set resized_crop and leave "
                "imbalance_factor out, or leave streaming out"
            )
        if self.resized_crop and self.views != 1:
            raise ValueError(f"views={self.views}, but resized_crop supports one view per image: leave one of them out")
        if self.streaming and self.labelled_images is not None:
            raise ValueError(
                f"labelled_images={self.labelled_images} needs all labels in advance, which streaming does not "
                "provide: leave one of them out"
            )
        names = ("train_split", "test_split", "image_column", "label_column")
        source = {name: getattr(self, name) for name in names} | {"name": self.dataset_config}
        transform: ImageTransform | LargeImageTransform
        mean, std = tuple(self.image_mean), tuple(self.image_std)
        if self.resized_crop:
            size = self.image_size or IMAGENET_SIZE
            transform = LargeImageTransform(size, mean, std, augment=True, flip=self.flip, seed=seed)
            train, test = load_large_images(self.dataset_name, streaming=self.streaming, **source)
        else:
            transform = ImageTransform(mean, std, True, self.crop_padding, self.flip, seed, self.views)
            train, test = load_images(self.dataset_name, image_size=self.image_size, **source).values()
        if self.streaming:
            return (
                _stream(train, transform, "max_train_images", self.max_train_images, self.shuffle_buffer, seed),
                _stream(test, transform.clean(), "max_test_images", self.max_test_images),
            )
        _warn_of_untrained(train, test)
        if self.imbalance_factor is not None:
            train = long_tail(train, self.imbalance_factor, seed)
        train, test = few_images(train, self.max_train_images), few_images(test, self.max_test_images)
        if self.labelled_images is not None:
            train = few_labels(train, self.labelled_images, seed)
        if self.resident and not self.resized_crop:
            train, test = resident(train), resident(test)
        return train.with_transform(transform), test.with_transform(transform.clean())


def _warn_of_untrained(train: Dataset, test: Dataset) -> None:
    """Warn of classes of the test images that no training image has."""
    taught, scored = (np.unique(rows.with_format("numpy")["labels"][:]) for rows in (train, test))
    missing = [int(label) for label in np.setdiff1d(scored, taught) if label >= 0]  # below 0: hidden
    if missing:
        names = label_names(train)
        logger.warning(
            "There are test images, but no training images, of the classes %s: none of them can be right. Folders "
            "that are spelt differently in the two splits are different classes.",
            [names[label] if names else label for label in missing[:8]],
        )


def _stream(rows: Any, transform: Any, name: str, count: int | None, buffer: int = 0, seed: int = 0) -> ImageStream:
    """`name`: of the setting `count`."""
    length = stream_length(rows)
    parts = {name: count, "shuffle_buffer": buffer or None}
    warn_of_sorted_stream(rows, {k: size for k, size in parts.items() if size and size < (length or math.inf)})
    if count is not None:
        rows, length = rows.take(count), None if length is None else min(count, length)
    return ImageStream(rows, transform, length, buffer, seed)
