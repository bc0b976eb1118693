"""The flags that name images with boxes, and the two splits they give."""

from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hfkd.data.coco import BoxRows, BoxTransform, load_coco, load_objects
from hfkd.utils.counts import at_least_one


@dataclass
class BoxDataArguments:
    """Training and evaluation images with boxes: a folder in COCO's format, or a data set with a column objects."""

    dataset_name: str = field(
        default="coco",
        metadata={
            "help": "Folder in COCO's format (train2017/, val2017/ and their instances_*.json, beside them or in "
            "annotations/), or a Hub id or folder with images and a column objects of bbox and category."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on; of COCO's files the word in them."})
    test_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; unset: val of COCO's files, else test or validation."}
    )
    box_format: str = field(
        default="xywh", metadata={"help": "How objects' boxes are written: xywh (COCO) or xyxy; COCO's files say it."}
    )
    renumber: bool = field(
        default=False,
        metadata={"help": "Count COCO's categories 1, 2, ... without gaps; torchvision's detectors have the gaps."},
    )
    drop_bad_boxes: bool = field(
        default=False, metadata={"help": "Leave out boxes of no size, or outside of their image, in place of refusing."}
    )
    flip: bool = field(default=True, metadata={"help": "Mirror half of the training images, and their boxes."})
    max_train_images: int | None = field(default=None, metadata={"help": "Use the first images only, for a quick try."})
    max_test_images: int | None = field(default=None, metadata={"help": "Evaluate on the first images only."})

    def __post_init__(self) -> None:
        at_least_one(self, "max_train_images", "max_test_images")

    def load(self, seed: int = 0) -> tuple[Any, Any, tuple[str, ...]]:
        """The training images, mirrored anew each epoch, those to evaluate on, and the names of the classes.

        Raises ValueError for splits of other classes.
        """
        train, test = self._splits()
        if train.label_names != test.label_names:
            first = next((a, b) for a, b in zip_longest(train.label_names, test.label_names) if a != b)
            raise ValueError(
                f"the two splits of {self.dataset_name} have other classes: {first[0]!r} in the one is {first[1]!r} in "
                "the other; give both files the same categories"
            )
        transform = BoxTransform(self.flip, seed, train.label_names)
        rows = [
            part.rows if count is None else part.rows.select(range(min(count, len(part.rows))))
            for part, count in ((train, self.max_train_images), (test, self.max_test_images))
        ]
        views = [one.with_transform(t) for one, t in zip(rows, (transform, transform.clean()), strict=True)]
        return views[0], views[1], train.label_names

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
    """The folder of images and the file of instances of a split, where `folder` is in COCO's format."""
    files = [*folder.glob(f"instances_{split}*.json"), *folder.glob(f"annotations/instances_{split}*.json")]
    if len(files) > 1:
        raise ValueError(
            f"{folder} has several files of {split}: {sorted(f.name for f in files)}; name the split whole"
        )
    if not files:
        return None
    images = folder / files[0].stem.removeprefix("instances_")
    return (images if images.is_dir() else folder), files[0]
