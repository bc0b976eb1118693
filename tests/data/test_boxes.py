"""Rows of images with boxes become padded batches, and back; what is no box of its image is named."""

import numpy as np
import pytest
import torch
from detection_toys import boxed
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from hfkd.data.boxes import BoxCollator
from hfkd.models.regions import targets_of, unpadded
from hfkd.utils.targets import IGNORED

BOX = [[2.0, 3.0, 10.0, 12.0]]


def row(boxes=BOX, labels=(1,), size=(20, 30), **more):
    return {"pixel_values": torch.zeros(3, *size), "boxes": boxes, "labels": list(labels)} | more


def same(batch, rows):
    for image, target, wanted in zip(unpadded(batch), targets_of(batch), rows, strict=True):
        assert torch.equal(image, wanted["pixel_values"])
        assert torch.equal(target["boxes"], wanted["boxes"])
        assert torch.equal(target["labels"], wanted["labels"])


def test_images_of_several_sizes_come_back_as_they_were():
    rows = boxed((2, 0, 3))
    batch = BoxCollator()(rows)
    assert batch["pixel_values"].shape == (3, 3, 48, 60)
    assert batch["labels"].tolist()[1] == [IGNORED] * 3
    assert batch["index"].tolist() == [0, 1, 2]
    same(batch, rows)


def test_no_box_at_all():
    batch = BoxCollator()(boxed((0, 0)))
    assert batch["boxes"].shape == (2, 0, 4)
    assert [len(target["boxes"]) for target in targets_of(batch)] == [0, 0]


def test_pairs_of_image_and_target_and_collators_that_zip_them():
    rows = boxed((2, 1))
    pairs = [(one["pixel_values"], {"boxes": one["boxes"], "labels": one["labels"]}) for one in rows]
    same(BoxCollator()(pairs), rows)
    same(BoxCollator(lambda batch: tuple(zip(*batch, strict=True)))(pairs), rows)
    alone = BoxCollator()([(rows[0]["pixel_values"], {"image_id": 3})])
    assert alone["labels"].shape == (1, 0)


def test_pictures_and_bytes_become_pixels_from_0_to_1():
    pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    kinds = [Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    batch = BoxCollator()([row(size=(12, 12)) | {"pixel_values": one} for one in kinds])
    wanted = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    assert all(torch.allclose(one, wanted) for one in batch["pixel_values"])


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_pictures_of_more_than_8_bits_are_not_clipped(kind):
    picture = Image.fromarray((1000 * np.arange(144)).reshape(12, 12).astype(kind))
    with pytest.raises(ValueError, match=r"the picture of row 0 of a batch cannot be used: it has 16-bit or float"):
        BoxCollator()([row(size=(12, 12)) | {"pixel_values": picture}])


@pytest.mark.parametrize("layout", ["XYXY", "XYWH", "CXCYWH"])
def test_bounding_boxes_of_torchvision_say_their_format(layout):
    """Widths were taken for corners: another box, inside of the image as well."""
    corners = tv_tensors.BoundingBoxes(BOX, format="XYXY", canvas_size=(20, 30))
    given = F.convert_bounding_box_format(corners, new_format=tv_tensors.BoundingBoxFormat[layout])
    batch = BoxCollator()([row(boxes=given)])
    assert (type(batch["boxes"]), batch["boxes"].tolist()) == (torch.Tensor, [BOX])
    with pytest.raises(ValueError, match=r"boxes of an image of \(20, 30\) pixels .* and an image of \(40, 60\)"):
        BoxCollator()([row(boxes=given, size=(40, 60))])


def test_grey_images_among_coloured_ones():
    grey = np.arange(600, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    batch = BoxCollator()([row() | {"pixel_values": grey}, row()])
    wanted = torch.from_numpy(grey).float() / 255
    assert all(torch.allclose(channel, wanted) for channel in batch["pixel_values"][0])


def test_crowds_are_no_targets_of_training():
    batch = BoxCollator()([row(boxes=BOX * 2, labels=[1, 2], iscrowd=[True, False])])
    assert [target["labels"].tolist() for target in targets_of(batch)] == [[2]]
    assert batch["labels"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (row([[2.0, 3.0, 31.0, 12.0]]), r"the box \[2.0, 3.0, 31.0, 12.0\] lies outside of its image"),
        (row([[2.0, 3.0, 2.0, 12.0]]), "has no size"),
        (row([[2.0, 3.0, float("nan"), 12.0]]), "has no size"),
        (row(labels=[0], index=7), "row 7 has a box of class 0, but 0 is the background"),
        (row(labels=[1, 2]), r"boxes of shape \(1, 4\) and labels of shape \(2,\)"),
        (row(labels=[1.0]), "are integers, from 1 on"),
        (row() | {"pixel_values": torch.zeros(20, 30, 3)}, r"an image of shape \(20, 30, 3\): pass \[3, height"),
        (row() | {"pixel_values": torch.randn(3, 20, 30)}, "detectors normalise images themselves"),
        ({"image": 0, "objects": 1}, r"the dataset's rows are \['image', 'objects'\]"),
        (3, "of type int"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        BoxCollator()([given])
