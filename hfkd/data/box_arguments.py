"""The flags that define a dataset of images with boxes, and its two splits."""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hfkd.data.coco import BoxRows, BoxTransform, load_coco, load_objects
from hfkd.data.first_rows import at_most
from hfkd.utils.flags import at_least_one, flag


@dataclass
class BoxDataArguments:
    """Training and evaluation images with boxes: a folder in COCO's format, or a dataset with a column objects."""

    dataset_name: str = flag(
        "coco",
        "Folder in COCO's format (train2017/, val2017/ and their instances_*.json, beside them or in "
        "annotations/), or a Hub id or folder with images and a column objects of bbox and category.",
    )
    train_split: str = flag("train", "Split to train on; for COCO files, the word in their names.")
    test_split: str | None = flag(
        None, "Split to evaluate on; unset: val for COCO files, otherwise test or validation."
    )
    box_format: str = flag("xywh", "Format of the boxes in objects: xywh (COCO) or xyxy; not used for COCO files.")
    renumber: bool = flag(
        False, "Number COCO's categories 1, 2, ... without gaps; torchvision's detectors keep the gaps."
    )
    drop_bad_boxes: bool = flag(
        False, "Drop empty boxes and boxes outside of their image, instead of raising an error."
    )
    flip: bool = flag(True, "Flip half of the training images horizontally, with their boxes.")
    max_train_images: int | None = flag(None, "Use the first images only, for a quick try.")
    max_test_images: int | None = flag(None, "Evaluate on the first images only.")

    def __post_init__(self) -> None:
        at_least_one(self, "max_train_images", "max_test_images")

    def load(self, seed: int = 0) -> tuple[Any, Any, tuple[str, ...]]:
        """The training images, flipped at random in each epoch, the evaluation images, and the names of the classes.

        Raises ValueError if the splits have different classes.
        """
        train, test = self._splits()
        if train.label_names != test.label_names:
            first = next((a, b) for a, b in zip_longest(train.label_names, test.label_names) if a != b)
            raise ValueError(
                f"the two splits of {self.dataset_name} have different classes: {first[0]!r} in one is {first[1]!r} "
                "in the other; give both files the same categories"
            )
        transform = BoxTransform(self.flip, seed, train.label_names)
        shown, scored = at_most(train.rows, self.max_train_images), at_most(test.rows, self.max_test_images)
        return shown.with_transform(transform), scored.with_transform(transform.clean()), train.label_names

    def _splits(self) -> tuple[BoxRows, BoxRows]:
        folder = Path(self.dataset_name).expanduser()
        found = [_coco_files(folder, split) for split in (self.train_split, self.test_split or "val")]
        if found[0] is None or found[1] is None:
            return load_objects(
                self.dataset_name, self.train_split, self.test_split, self.box_format, self.drop_bad_boxes
            )
        train, test = (load_coco(*one, self.renumber, self.drop_bad_boxes) for one in found if one is not None)
        return train, test


def _coco_files(folder: Path, split: str) -> tuple[Path, Path] | None:
    """The image folder and the instances file of a split; None if `folder` is not in COCO's format."""
    files = [*folder.glob(f"instances_{split}*.json"), *folder.glob(f"annotations/instances_{split}*.json")]
    if len(files) > 1:
        raise ValueError(
            f"{folder} has several files for the split {split}: {sorted(f.name for f in files)}; pass the full name "
            "of the split"
        )
    if not files:
        return None
    images = folder / files[0].stem.removeprefix("instances_")
    return (images if images.is_dir() else folder), files[0]
