"""Padded batches of images of different sizes with boxes.

B images, G boxes of an image, H and W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from hfkd.data.collate import RGB
from hfkd.data.images import in_rgb
from hfkd.utils.targets import IGNORED

TOLERANCE = 1e-3  # in pixels, for rounding
REQUIRED = ("boxes", "labels")


class BoxCollator:
    """Collate images with boxes to pixel_values [B, 3, H, W], image_sizes [B, 2], boxes, labels, iscrowd and index.

    A row has `pixel_values` (a PIL image, a uint8 array or tensor, or floats in [0, 1]; detectors normalise images
    themselves), `boxes` [G, 4] as (x1, y1, x2, y2) in pixels, or `tv_tensors.BoundingBoxes` in any format, `labels` [G]
    from 1 on, and optionally `iscrowd` [G]. A pair (image, target), as in torchvision's detection references, is
    accepted too; G may be 0. Images are padded at the bottom and right with 0, boxes with 0, and labels with -100;
    grey images become RGB. `collate`: a custom collator, whose batches (images, targets) are converted. Raises
    ValueError for boxes that are outside of their image, empty, not finite, or of an image of another size, for the
    label 0, which is the background, for pixels that are neither uint8 nor in [0, 1], and for rows in another format.
    """

    def __init__(self, collate: Callable[..., Any] | None = None) -> None:
        self.collate = collate

    def __call__(self, rows: Any) -> dict[str, Tensor]:
        if self.collate is not None:
            rows = self.collate(rows)
        if isinstance(rows, Mapping):
            if {"pixel_values", "image_sizes", *REQUIRED} <= rows.keys():
                return dict(rows)
            rows = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        elif self.collate is not None:
            rows = list(zip(*rows, strict=True))
        made = [_row(row, place) for place, row in enumerate(rows)]
        images = [row["pixel_values"] for row in made]
        batch = {
            "pixel_values": _padded(images),
            "image_sizes": torch.tensor([image.shape[-2:] for image in images]),
            "boxes": pad_sequence([row["boxes"] for row in made], True),
            "labels": pad_sequence([row["labels"] for row in made], True, padding_value=IGNORED),
            "iscrowd": pad_sequence([row["iscrowd"] for row in made], True),
        }
        if all("index" in row for row in made):
            batch["index"] = torch.tensor([int(row["index"]) for row in made])
        return batch


def _padded(images: Sequence[Tensor]) -> Tensor:
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    whole = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for place, image in zip(whole, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return whole


def _row(row: Any, place: int) -> dict[str, Any]:
    given = _by_name(row)
    index = {"index": given["index"]} if "index" in given else {}
    name = f"row {int(index['index'])}" if index else f"row {place} of a batch"
    image = _in_colours(_pixels(given["pixel_values"], name), name)
    boxes = _corners(given["boxes"], image.shape[-2:], name)
    boxes = boxes.as_subclass(Tensor).float().reshape(-1, 4) if boxes.numel() in (0, 4 * len(boxes)) else boxes
    labels = torch.as_tensor(given["labels"]).as_subclass(Tensor)
    labels = labels.long() if not labels.numel() else labels
    check_boxes(boxes, labels, image.shape[-2:], name)
    crowd = torch.as_tensor(given.get("iscrowd", torch.zeros(len(labels)))).bool()
    return index | {"pixel_values": image, "boxes": boxes, "labels": labels.long(), "iscrowd": crowd}


def _corners(boxes: Any, size: Sequence[int], name: str) -> Tensor:
    """Boxes of `tv_tensors.BoundingBoxes` as (x1, y1, x2, y2); others are taken for that.

    Raises ValueError for BoundingBoxes of another image size than the image has.
    """
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        return torch.as_tensor(boxes if isinstance(boxes, Tensor) else np.asarray(boxes))
    if tuple(boxes.canvas_size) != tuple(size):
        raise ValueError(
            f"{name} has boxes of an image of {tuple(boxes.canvas_size)} pixels (canvas_size), and an image of "
            f"{tuple(size)}: pass both through the same transform, the image as tv_tensors.Image or as a picture"
        )
    return F.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)


def _by_name(row: Any) -> Mapping[str, Any]:
    if isinstance(row, (tuple, list)) and len(row) == 2 and isinstance(row[1], Mapping):
        target = dict(row[1])
        # torchvision's target of an image without boxes
        if not {*REQUIRED} & target.keys() and target.keys() <= {"image_id"}:
            target |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        row = {"pixel_values": row[0]} | target
    if not isinstance(row, Mapping) or not {"pixel_values", *REQUIRED} <= row.keys():
        found = sorted(map(str, row)) if isinstance(row, Mapping) else f"of type {type(row).__name__}"
        raise ValueError(
            f"the dataset's rows are {found}, but object_detection needs pixel_values, boxes (x1, y1, x2, y2) and "
            "labels: load them by hfkd.data.coco.load_coco, or wrap torchvision's CocoDetection with "
            "torchvision.datasets.wrap_dataset_for_transforms_v2, target_keys=('boxes', 'labels', 'iscrowd')"
        )
    return row


def _pixels(value: Any, name: str) -> Tensor:
    if isinstance(value, Image.Image):
        try:
            value = in_rgb(value)
        except ValueError as error:
            raise ValueError(f"the picture of {name} cannot be used: {error}; scale it to 8 bits") from error
    image = (value if isinstance(value, Tensor) else F.to_image(value)).as_subclass(Tensor)
    if image.dtype == torch.uint8:
        return F.to_dtype(image, torch.float32, scale=True)
    low, high = (float(x) for x in image.aminmax()) if image.is_floating_point() else (-1.0, 2.0)
    if low < 0 or high > 1 or image.ndim != 3:
        raise ValueError(
            f"{name} has pixels from {low:.3g} to {high:.3g}, of {image.dtype}, shape {tuple(image.shape)}: detectors "
            "normalise images themselves; pass uint8, or floats from 0 to 1 [3, height, width], without Normalize"
        )
    return image.float()


def _in_colours(image: Tensor, name: str) -> Tensor:
    """A grey image as RGB. Raises ValueError for other channels."""
    if image.ndim != 3 or image.shape[0] not in (1, RGB):
        raise ValueError(
            f"{name} has an image of shape {tuple(image.shape)}: pass [3, height, width], or [1, height, width] for a "
            "grey one, without an alpha channel"
        )
    return image.expand(RGB, -1, -1)


def refuse_shares(boxes: Tensor) -> None:
    """Raise ValueError if all boxes [G, 4] lie within the first pixel, as those that are shares of the image do."""
    if len(boxes) and float(boxes.max()) <= 1:
        box = [round(x, 3) for x in boxes[0].tolist()]
        raise ValueError(
            f"all boxes lie within one pixel, such as {box} (x1, y1, x2, y2), and seem to be shares of the image's "
            "width and height: multiply them by these, as detectors read pixels"
        )


def check_boxes(boxes: Tensor, labels: Tensor, size: Sequence[int], name: str) -> None:
    """Raise ValueError for boxes [G, 4] or labels [G] that are invalid in an image of `size` (height, width)."""
    if boxes.ndim != 2 or boxes.shape[-1] != 4 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name} has boxes of shape {tuple(boxes.shape)} and labels of shape {tuple(labels.shape)}: pass [G, 4] "
            "and [G], with one label for each box"
        )
    if not len(boxes):
        return
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{name} has labels of {labels.dtype}: the classes of boxes are integers, from 1 on")
    if int(labels.min()) < 1:
        raise ValueError(
            f"{name} has a box of class {int(labels.min())}, but 0 is the background: number the classes from 1 on"
        )
    height, width = size
    edges = boxes.new_tensor([width, height, width, height])
    flat = ~(boxes[:, 2:] > boxes[:, :2]).all(1)  # NaN too
    outside = ((boxes < -TOLERANCE) | (boxes > edges + TOLERANCE)).any(1)
    for wrong, why in ((flat, "has no size, or is not (x1, y1, x2, y2)"), (outside, "lies outside of its image")):
        if wrong.any():
            box = [round(x, 2) for x in boxes[wrong][0].tolist()]
            raise ValueError(
                f"{name}: the box {box} {why}, which is {height} pixels high and {width} wide; correct it, or leave "
                "such boxes out (hfkd.data.coco.load_coco(..., drop_bad_boxes=True) does)"
            )
