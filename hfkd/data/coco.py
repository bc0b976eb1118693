"""Images with boxes: folders in COCO's format, datasets with a column `objects`, and their augmentation.

G boxes of an image, C classes, including the background as class 0.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets
from datasets import Image as ImageFeature
from datasets import List as ListFeature
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from hfkd.data.boxes import TOLERANCE, refuse_shares
from hfkd.data.columns import find_column
from hfkd.data.epochs import EpochTransform, epoch_zero
from hfkd.data.images import IMAGE_COLUMNS, pick_splits, picture, picture_hw, shown_hw
from hfkd.data.splits import load_splits

logger = logging.getLogger(__name__)

BACKGROUND = "__background__"
FEATURES = Features(
    {
        "image": ImageFeature(decode=False),
        "boxes": ListFeature(ListFeature(Value("float32"))),
        "labels": ListFeature(Value("int64")),
        "iscrowd": ListFeature(Value("bool")),
        "index": Value("int64"),
    }
)


@dataclass
class BoxTransform(EpochTransform):
    """Images with their boxes, in training flipped at random as a function of (seed, epoch, index).

    Reads `image`, `boxes`, `labels`, `iscrowd` and `index`; returns `pixel_values` [3, H, W] as uint8 instead of the
    image, at its original size: detectors resize and normalise images themselves. `label_names` begin with the
    background.
    """

    augment: bool = False
    seed: int = 0
    label_names: tuple[str, ...] | None = None
    epoch: Tensor = field(default_factory=epoch_zero, repr=False)

    def clean(self) -> Self:
        return replace(self, augment=False)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        rows = zip(batch["image"], batch["boxes"], batch["index"], self.seeds(batch["index"]), strict=True)
        with torch.random.fork_rng(devices=[]):
            views = [self._view(*row) for row in rows]
        kept = {name: batch[name] for name in ("labels", "iscrowd", "index") if name in batch}
        return {"pixel_values": [image for image, _ in views], "boxes": [boxes for _, boxes in views]} | kept

    def _view(self, image: Any, boxes: Any, row: int, seed: int) -> tuple[Tensor, Tensor]:
        seen = v2.functional.to_image(picture(image, row))
        values = torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4)
        shown = tv_tensors.BoundingBoxes(values, format="XYXY", canvas_size=seen.shape[-2:])
        torch.default_generator.manual_seed(seed)
        if self.augment:
            seen, shown = v2.RandomHorizontalFlip()(seen, shown)
        return seen.as_subclass(Tensor), shown.as_subclass(Tensor)


@dataclass(frozen=True)
class BoxRows:
    """A split with `FEATURES`, and the names of its classes, beginning with the background."""

    rows: Dataset
    label_names: tuple[str, ...]


def load_coco(
    images: str | Path, annotations: str | Path, renumber: bool = False, drop_bad_boxes: bool = False
) -> BoxRows:
    """Load a folder of images and an instances file in COCO's format; boxes (x, y, width, height) become corners.

    Classes keep their ids, including gaps, as in torchvision's detectors (COCO: 91); `renumber` numbers them 1, 2, ...
    in the order of their ids. Images without boxes are kept. Raises ValueError for boxes that are outside of their
    image or empty, unless they are dropped (and counted in the log), for the id 0, which is the background, for ids
    that occur twice, for missing files, and for images of another size than in `annotations`, as boxes are in pixels.
    """
    path = Path(annotations).expanduser()
    listed, categories, of_image = _read(path)
    numbers = {i: n for n, i in enumerate(sorted(categories), 1)} if renumber else {i: i for i in categories}
    names = _names({numbers[i]: name for i, name in categories.items()}, path.name)
    rows, checked, unsure = [], _Checked(drop_bad_boxes), 0
    for image in listed:
        file = Path(images).expanduser() / image["file_name"]
        if not file.is_file():
            raise ValueError(
                f"{path.name} names {image['file_name']}, which is not in {images}: pass the folder of the images"
            )
        (size, turned), name = _size(image, file, path.name), f"{path.name}, image {image['file_name']}"
        unsure += turned and image["id"] in of_image
        boxes, labels, crowd = [], [], []
        for one in of_image.get(image["id"], ()):
            box, category, of_crowd = _read_box(one, name)
            if category not in numbers:
                raise ValueError(
                    f"{name}: the category {category} is not among the file's categories: add it, or remove the box"
                )
            if checked(box, size, name):
                boxes.append(box)
                labels.append(numbers[category])
                crowd.append(of_crowd)
        rows.append({"image": {"path": str(file), "bytes": None}, "boxes": boxes, "labels": labels, "iscrowd": crowd})
    checked.say(path.name)
    if unsure:
        logger.warning(
            "%d images of %s are turned or mirrored by their EXIF orientation, which leaves their size: they are used "
            "as they are shown, so that boxes of the stored pixels would be other places.",
            unsure,
            path.name,
        )
    columns = {name: [row[name] for row in rows] for name in ("image", "boxes", "labels", "iscrowd")}
    return BoxRows(Dataset.from_dict(columns | {"index": list(range(len(rows)))}, FEATURES), names)


def _read(path: Path) -> tuple[list[Any], dict[int, str], dict[Any, list[Any]]]:
    """The images of an instances file, the names of its categories, and the boxes of each image, by their ids.

    Raises ValueError for ids that occur twice, which would mix the boxes of two images or the names of two classes, and
    if no box is of a listed image.
    """
    of_image: dict[Any, list[Any]] = {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        listed, categories = content["images"], [(int(c["id"]), str(c["name"])) for c in content["categories"]]
        files = [(image["id"], image["file_name"]) for image in listed]
        for one in content["annotations"]:
            of_image.setdefault(one["image_id"], []).append(one)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an instances file in COCO's format ({error!r}): pass a JSON file with images, "
            "annotations and categories"
        ) from error
    for kind, found in (("images", files), ("categories", categories)):
        twice = next((number for number, count in Counter(number for number, _ in found).items() if count > 1), None)
        if twice is not None:
            raise ValueError(
                f"{path.name} has several {kind} with the id {twice!r}, which annotations cannot tell apart: give each "
                "an id of its own"
            )
    others = of_image.keys() - {number for number, _ in files}
    if others and len(others) == len(of_image):
        raise ValueError(
            f"{path.name} has annotations of the image {next(iter(of_image))!r} and others, but lists other images "
            f"({files[:1]}), so that none has a box: give both the same ids, of the same type"
        )
    if others:
        logger.warning(
            "%d annotations of %s are of images that it does not list, and are left out.",
            sum(len(of_image[one]) for one in others),
            path.name,
        )
    return listed, dict(categories), of_image


def _read_box(one: dict[str, Any], name: str) -> tuple[list[float], int, bool]:
    """Corners, category and whether it is a crowd, of an annotation. Raises ValueError for one without a box."""
    try:
        x, y, width, height = map(float, one["bbox"])
        return [x, y, x + width, y + height], int(one["category_id"]), bool(int(one.get("iscrowd", 0)))
    except (ValueError, KeyError, TypeError) as error:
        which = f" (id {one['id']})" if "id" in one else ""
        raise ValueError(
            f"{name}: an annotation{which} has no usable box ({error!r}): it needs bbox [x, y, width, height], "
            "category_id, and iscrowd 0 or 1, if given; correct it, or remove it"
        ) from error


def _size(image: dict[str, Any], file: Path, source: str) -> tuple[tuple[int, int], bool]:
    """Height and width of a picture as it is shown, and whether that is turned without another size.

    Raises ValueError if its entry in the annotations says another size.
    """
    try:
        with Image.open(file) as found:
            (height, width), orientation = shown_hw(found)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a picture: {error}; replace it, or leave it out") from error
    if (image.get("height", height), image.get("width", width)) != (height, width):
        raise ValueError(
            f"{image['file_name']} is {height} pixels high and {width} wide, and {source} says "
            f"{image.get('height')} and {image.get('width')}: its boxes would be other places; give the images that "
            "were annotated, in the orientation of the annotations"
        )
    return (height, width), orientation > 1 and (orientation <= 4 or height == width)


def load_objects(
    name_or_path: str,
    train_split: str = "train",
    test_split: str | None = None,
    box_format: str = "xywh",
    drop_bad_boxes: bool = False,
) -> tuple[BoxRows, BoxRows]:
    """Train and test split of a Hub id or folder with images and a column `objects` with bbox and category.

    Categories are numbered from 0 in the column and from 1 in the result; their names are those of the feature.
    box_format: "xywh" as in COCO, or "xyxy". Raises the ValueErrors of `load_coco`.
    """
    if box_format not in ("xywh", "xyxy"):
        raise ValueError(f"box_format={box_format!r} must be 'xywh' (as in COCO) or 'xyxy'")
    train, test = pick_splits(load_splits(name_or_path), name_or_path, train_split, test_split)
    made = _of_objects(train, box_format, drop_bad_boxes), _of_objects(test, box_format, drop_bad_boxes)
    names = max((one.label_names for one in made), key=len)  # numbers need not all be in both
    if all(names[: len(one.label_names)] == one.label_names for one in made):
        made = replace(made[0], label_names=names), replace(made[1], label_names=names)
    return made


def _of_objects(rows: Dataset, box_format: str, drop_bad_boxes: bool) -> BoxRows:
    image_column = find_column(rows, None, IMAGE_COLUMNS, "image_column")
    objects = rows.features.get("objects")
    inner = getattr(objects, "feature", objects)
    if not isinstance(inner, dict) or not {"bbox"} <= inner.keys() or not {"category", "categories"} & inner.keys():
        raise ValueError(
            f"the columns are {rows.column_names}, but boxes must be in a column objects with bbox and category: "
            "rename the columns, or pass a folder in COCO's format"
        )
    column = "category" if "category" in inner else "categories"
    feature: Any = getattr(inner[column], "feature", inner[column])
    if not isinstance(feature, ClassLabel) and "int" not in str(getattr(feature, "dtype", "")):
        raise ValueError(
            f"objects.{column} holds {feature}, but the classes of boxes must be numbers from 0 on: write it with a "
            "ClassLabel feature of their names"
        )
    rows = rows.cast_column(image_column, ImageFeature(decode=False))
    checked = _Checked(drop_bad_boxes, f"set box_format (it is {box_format!r}), ")
    made: dict[str, list[Any]] = {name: [] for name in ("boxes", "labels", "iscrowd")}  # the files stay in Arrow
    for index, row in enumerate(rows):
        found = _objects_of(row["objects"], tuple(inner), column, index)
        size = picture_hw(row[image_column], index)
        boxes = [[*b[:2], b[0] + b[2], b[1] + b[3]] if box_format == "xywh" else list(b) for b in found["bbox"]]
        kept = [k for k, box in enumerate(boxes) if checked(box, size, f"row {index}")]
        made["boxes"].append([boxes[k] for k in kept])
        made["labels"].append([int(found[column][k]) + 1 for k in kept])
        made["iscrowd"].append([bool(found["iscrowd"][k]) if "iscrowd" in found else False for k in kept])
    checked.say("the data set")
    highest = max((label for labels in made["labels"] for label in labels), default=1)
    words = feature.names if isinstance(feature, ClassLabel) else [str(k) for k in range(highest)]
    names = _names({k: str(word) for k, word in enumerate(words, 1)}, "the data set")
    features = Features({name: kind for name, kind in FEATURES.items() if name != "image"})
    boxed = Dataset.from_dict(made | {"index": list(range(len(rows)))}, features)
    pictures = rows.select_columns(image_column).rename_columns({image_column: "image"})
    return BoxRows(concatenate_datasets([pictures, boxed], axis=1), names)


def _objects_of(value: Any, names: Sequence[str], column: str, row: int) -> dict[str, Any]:
    """The entries of an image's objects, each a list; None and a list of objects are read too.

    Raises ValueError for a box without a category.
    """
    found = value or []
    if isinstance(found, list):
        found = {name: [one[name] for one in found] for name in names}
    for number in found[column]:
        if number is None or number < 0:
            raise ValueError(
                f"row {row} has a box of the category {number}: number the categories from 0 on, or remove the box"
            )
    return found


def _names(by_number: dict[int, str], source: str) -> tuple[str, ...]:
    if not by_number or min(by_number) < 1:
        raise ValueError(
            f"{source} has a category 0, which detectors use for the background: number the categories from 1 on, or "
            "pass renumber=True"
            if by_number
            else f"{source} has no categories"
        )
    return (BACKGROUND, *(by_number.get(k, f"unused_{k}") for k in range(1, max(by_number) + 1)))


@dataclass
class _Checked:
    """Checks whether a box is valid in its image; other boxes are dropped and counted, or raise ValueError."""

    drop: bool
    remedy: str = ""
    dropped: int = 0
    small: list[Sequence[float]] = field(default_factory=list)  # those within the first pixel, until one is not
    large: bool = False

    def __call__(self, box: Sequence[float], size: tuple[float, float], name: str) -> bool:
        height, width = size
        flat = not (box[2] > box[0] and box[3] > box[1])
        outside = min(box[:2]) < -TOLERANCE or box[2] > width + TOLERANCE or box[3] > height + TOLERANCE
        if not (flat or outside):
            self.large |= max(box) > 1
            if not self.large:
                self.small.append(box)
            return True
        self.dropped += 1
        if not self.drop:
            why = "has no size" if flat else f"lies outside of the image, {height} pixels high and {width} wide"
            raise ValueError(
                f"{name}: the box {[round(float(x), 2) for x in box]} (x1, y1, x2, y2) {why}; correct it, "
                f"{self.remedy}or set drop_bad_boxes"
            )
        return False

    def say(self, source: str) -> None:
        if not self.large:
            refuse_shares(torch.tensor(self.small))
        if self.dropped:
            logger.warning("%d boxes of %s are empty or outside of their image, and are dropped.", self.dropped, source)
