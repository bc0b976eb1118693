"""The flags that name a data set of images and masks, and the two splits they give."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfkd.data.large_images import IMAGENET_MEAN, IMAGENET_STD
from hfkd.data.masks import MaskTransform, load_masks, read_label_names, read_palette
from hfkd.utils.counts import at_least_one

NAMES_FILE = "id2label.json"


@dataclass
class MaskDataArguments:
    """Training and evaluation images with masks: any data set with a column of each."""

    dataset_name: str = field(
        default="camvid", metadata={"help": "Hub id or local folder with a column of images and one of masks."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set, if it has any."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": "Split to evaluate on; unset: test or validation."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; unset: found by its name."})
    label_column: str | None = field(
        default=None, metadata={"help": "Column of the masks; unset: label, annotation, mask, ..."}
    )
    id2label: str | None = field(
        default=None,
        metadata={
            "help": f'JSON file of the class names, {{"0": "sky", ...}}; unset: {NAMES_FILE} of the data folder.'
        },
    )
    num_labels: int | None = field(default=None, metadata={"help": "How many classes, where nothing names them."})
    palette: str | None = field(
        default=None, metadata={"help": 'For masks in colour: a JSON file, {"128,0,0": 0, "0,0,0": 255, ...}.'}
    )
    reduce_labels: bool = field(
        default=False, metadata={"help": "Class 0 stands for none, and the others count from 1, as in ADE20K."}
    )
    image_size: list[int] = field(
        default_factory=lambda: [180, 240], metadata={"help": "Height and width that networks see."}
    )
    image_mean: list[float] = field(
        default_factory=lambda: list(IMAGENET_MEAN), metadata={"help": "Mean of each channel, of pixels from 0 to 1."}
    )
    image_std: list[float] = field(
        default_factory=lambda: list(IMAGENET_STD), metadata={"help": "Standard deviation of each channel."}
    )
    min_scale: float = field(default=0.5, metadata={"help": "Training images are scaled by this at least."})
    max_scale: float = field(default=2.0, metadata={"help": "And by this at most, before they are cut to image_size."})
    flip: bool = field(default=True, metadata={"help": "Mirror half of the training images, and their masks."})
    max_train_images: int | None = field(default=None, metadata={"help": "Use the first images only, for a quick try."})
    max_test_images: int | None = field(default=None, metadata={"help": "Evaluate on the first images only."})

    def __post_init__(self) -> None:
        at_least_one(self, "num_labels", "max_train_images", "max_test_images")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size={self.image_size} must be a height and a width, such as 180 240")

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The class names of `id2label`, or of the file beside the data. ValueError for another number of them."""
        beside = Path(self.dataset_name).expanduser() / NAMES_FILE
        path = self.id2label or (os.fspath(beside) if beside.is_file() else None)
        names = None if path is None else read_label_names(path)
        if names is not None and self.num_labels not in (None, len(names)):
            raise ValueError(f"{path} names {len(names)} classes, and num_labels={self.num_labels}: leave one out")
        return names

    @property
    def classes(self) -> int:
        names = self.label_names
        if names is None and self.num_labels is None:
            raise ValueError(
                f"nothing says which classes the masks of {self.dataset_name} have: pass --id2label with a JSON file "
                "of their names, or --num_labels"
            )
        return len(names) if names is not None else int(self.num_labels or 0)

    def load(self, seed: int = 0) -> tuple[Any, Any]:
        """The training images with their masks, augmented anew each epoch, and those to evaluate on."""
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
        train, test = (
            part if count is None else part.select(range(min(count, len(part))))
            for part, count in ((train, self.max_train_images), (test, self.max_test_images))
        )
        return train.with_transform(transform), test.with_transform(transform.clean())
