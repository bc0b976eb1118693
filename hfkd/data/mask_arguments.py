"""The flags that define a dataset of images with masks, and its two splits."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfkd.data.first_rows import at_most
from hfkd.data.large_images import IMAGENET_MEAN, IMAGENET_STD
from hfkd.data.masks import MaskTransform, load_masks, read_label_names, read_palette
from hfkd.utils.flags import at_least_one, flag

NAMES_FILE = "id2label.json"


@dataclass
class MaskDataArguments:
    """Training and evaluation images with masks: any dataset with a column of each."""

    dataset_name: str = flag("camvid", "Hub id or local folder with a column of images and one of masks.")
    dataset_config: str | None = flag(None, "Configuration of the dataset, if it has several.")
    train_split: str = flag("train", "Split to train on.")
    test_split: str | None = flag(None, "Split to evaluate on; unset: test or validation.")
    image_column: str | None = flag(None, "Column of the images; unset: found by its name.")
    label_column: str | None = flag(None, "Column of the masks; unset: label, annotation, mask, ...")
    id2label: str | None = flag(
        None, f'JSON file with the class names, {{"0": "sky", ...}}; unset: {NAMES_FILE} of the data folder.'
    )
    num_labels: int | None = flag(None, "Number of classes, if no file has their names.")
    palette: str | None = flag(
        None, 'The class of each colour of the masks: a JSON file, {"128,0,0": 0, "0,0,0": 255, ...}.'
    )
    reduce_labels: bool = flag(False, "Class 0 means unlabelled, and the other classes start at 1, as in ADE20K.")
    image_size: list[int] = flag(lambda: [180, 240], "Height and width of the networks' input.")
    image_mean: list[float] = flag(lambda: list(IMAGENET_MEAN), "Mean of each channel, of pixels from 0 to 1.")
    image_std: list[float] = flag(lambda: list(IMAGENET_STD), "Standard deviation of each channel.")
    min_scale: float = flag(0.5, "Smallest random scale of training images.")
    max_scale: float = flag(2.0, "Largest random scale of training images, before the crop to image_size.")
    flip: bool = flag(True, "Flip half of the training images horizontally, with their masks.")
    max_train_images: int | None = flag(None, "Use the first images only, for a quick try.")
    max_test_images: int | None = flag(None, "Evaluate on the first images only.")

    def __post_init__(self) -> None:
        at_least_one(self, "num_labels", "max_train_images", "max_test_images")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size={self.image_size} must be a height and a width, such as 180 240")

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The class names in `id2label`, or the file in the data folder. Raises ValueError if num_labels differs."""
        beside = Path(self.dataset_name).expanduser() / NAMES_FILE
        path = self.id2label or (os.fspath(beside) if beside.is_file() else None)
        names = None if path is None else read_label_names(path)
        if names is not None and self.num_labels not in (None, len(names)):
            raise ValueError(
                f"{path} names {len(names)} classes, but num_labels={self.num_labels}: leave one of them out"
            )
        return names

    @property
    def classes(self) -> int:
        names = self.label_names
        if names is None and self.num_labels is None:
            raise ValueError(
                f"the classes of the masks of {self.dataset_name} are not known: pass --id2label with a JSON file of "
                "their names, or --num_labels"
            )
        return len(names) if names is not None else int(self.num_labels or 0)

    def load(self, seed: int = 0) -> tuple[Any, Any]:
        """The training images with their masks, with random augmentation in each epoch, and the evaluation images."""
        names = ("train_split", "test_split", "image_column", "label_column")
        train, test = load_masks(
            self.dataset_name, **{name: getattr(self, name) for name in names}, name=self.dataset_config
        )
        transform = MaskTransform(
            (self.image_size[0], self.image_size[1]),
            tuple(self.image_mean),
            tuple(self.image_std),
            True,
            (self.min_scale, self.max_scale),
            self.flip,
            seed,
            self.reduce_labels,
            None if self.palette is None else read_palette(self.palette),
            self.label_names,
        )
        train, test = at_most(train, self.max_train_images), at_most(test, self.max_test_images)
        return train.with_transform(transform), test.with_transform(transform.clean())
