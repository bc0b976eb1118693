"""Whatever a user's dataset gives becomes one batch, or an error that says what to change."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, ViTImageProcessor

from hfkd.data.collate import ImageCollator

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
EXPECTED = torch.tensor(PIXELS).permute(0, 3, 1, 2) / 255


def rows(images, labels=(3, 1), **columns):
    return [
        {"pixel_values": image, "labels": label} | {k: v[i] for k, v in columns.items()}
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


@pytest.mark.parametrize(
    "images",
    [
        list(PIXELS),
        [Image.fromarray(p) for p in PIXELS],
        list(torch.tensor(PIXELS).permute(0, 3, 1, 2)),
        list(EXPECTED),
        list(EXPECTED.permute(0, 2, 3, 1).numpy()),
        list(EXPECTED.permute(0, 2, 3, 1).numpy().astype(np.float64)),
    ],
    ids=["numpy HWC", "PIL", "uint8 tensor", "float tensor", "float numpy", "double numpy"],
)
def test_images_of_every_kind_become_the_same_floats(images):
    batch = ImageCollator()(rows(images))
    assert batch.keys() == {"pixel_values", "labels"}
    assert batch["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(batch["pixel_values"], EXPECTED, rtol=0, atol=1e-7)
    assert batch["labels"].tolist() == [3, 1]


def test_normalised_floats_are_left_alone():
    images = 10 * torch.randn(2, 3, 4, 4)
    assert torch.equal(ImageCollator()(rows(list(images)))["pixel_values"], images)
    assert ImageCollator()(rows(list(images.bfloat16())))["pixel_values"].dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_pictures_in_colour_become_rgb(mode):
    pictures = [Image.fromarray(p).convert("LA" if mode == "LA" else "RGB").convert(mode) for p in PIXELS]
    expected = torch.stack([torch.tensor(np.array(p.convert("RGB"))).permute(2, 0, 1) / 255 for p in pictures])
    torch.testing.assert_close(ImageCollator()(rows(pictures))["pixel_values"], expected, rtol=0, atol=1e-7)


def test_grey_pictures_keep_their_one_channel():
    grey = [Image.fromarray(p).convert("L") for p in PIXELS]
    assert ImageCollator()(rows(grey))["pixel_values"].shape == (2, 1, 5, 4)


def test_mixed_labels_and_the_index_come_along_and_other_columns_stay():
    labels = [np.array([0.25, 0.75], dtype=np.float32), [1.0, 0.0]]
    batch = ImageCollator()(rows(list(EXPECTED), labels, index=[7, np.int64(9)], file=["a", "b"]))
    assert batch.keys() == {"pixel_values", "labels", "index"}
    assert batch["labels"].tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert batch["labels"].is_floating_point()
    assert batch["index"].tolist() == [7, 9]
    assert batch["index"].dtype == torch.int64


def test_class_ids_of_any_integer_kind():
    batch = ImageCollator()(rows(list(EXPECTED), [np.int64(4), np.int64(2)]))
    assert batch["labels"].tolist() == [4, 2]
    assert ImageCollator()(rows(list(EXPECTED), [torch.tensor(4), torch.tensor(2)]))["labels"].tolist() == [4, 2]
    batch = ImageCollator()(rows(list(EXPECTED), [np.uint16(4), np.uint16(2)]))
    assert batch["labels"].aminmax() == (torch.tensor(2), torch.tensor(4))


def test_a_processor_makes_the_images():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.1] * 3, image_std=[0.5] * 3)
    pictures = [Image.fromarray(p) for p in PIXELS]
    batch = ImageCollator(processor)(rows(pictures, index=[0, 1]))
    assert torch.equal(batch["pixel_values"], processor(pictures, return_tensors="pt")["pixel_values"])
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    ready = torch.randn(2, 3, 4, 4)
    assert torch.equal(ImageCollator(processor)(rows(list(ready)))["pixel_values"], ready)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([{"image": 1, "labels": 2}], r"no 'pixel_values' but \['image', 'labels'\]: rename the column"),
        (rows([torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]), r"\[\(3, 4, 4\), \(3, 4, 5\)\]: resize them"),
        (rows([Image.new("RGB", (4, 4)), Image.new("L", (4, 4))]), r"\[\(1, 4, 4\), \(3, 4, 4\)\]"),
        (
            rows(list(PIXELS.astype(np.int64))),
            "the images have dtype torch.int64, whose range is unknown: convert them to uint8",
        ),
    ],
)
def test_what_cannot_be_a_batch_is_said(batch, message):
    with pytest.raises(ValueError, match=message):
        ImageCollator()(batch)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_processors_get_no_pictures_that_they_would_clip(kind):
    picture = Image.fromarray((1000 * np.arange(64)).reshape(8, 8).astype(kind))
    collate = ImageCollator(CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}))
    with pytest.raises(ValueError, match="a picture of 16-bit or float pixels"):
        collate([{"pixel_values": picture, "labels": 1}])
