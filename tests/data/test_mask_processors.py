"""Image processors beside masks, which they are not given: none that would part the two."""

import numpy as np
import pytest
from PIL import Image
from transformers import MobileNetV2ImageProcessor, SegformerImageProcessor

from hfkd.data.collate import ImageCollator
from hfkd.data.masks import MaskCollator

SQUARE = {"height": 32, "width": 32}


def batch(processor, size=(32, 32), mask=(32, 32)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    row = {"labels": np.ones(mask, dtype=np.uint8)}
    collate = MaskCollator(ImageCollator(processor, shares=False))
    return [collate([row | {"pixel_values": image}] * 2) for image in (Image.fromarray(pixels), pixels)]


def test_a_processor_that_crops_parts_them():
    cropping = MobileNetV2ImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE)
    with pytest.raises(
        ValueError, match=r"MobileNetV2ImageProcessor crops, pads or shifts images of \(32, 32\) pixels"
    ):
        batch(cropping)


def test_a_processor_that_reduces_labels_is_given_none():
    with pytest.raises(ValueError, match="do_reduce_labels=True and prepares the images alone"):
        batch(SegformerImageProcessor(size=SQUARE, do_reduce_labels=True))


@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_a_processor_that_resizes_the_whole_image_does_not(size):
    for made in batch(SegformerImageProcessor(size=SQUARE), size):
        assert made["pixel_values"].shape == (2, 3, 32, 32)
    edge = MobileNetV2ImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    if size == (32, 32):
        assert len(batch(edge)) == 2
    else:
        with pytest.raises(ValueError, match=r"of \(48, 64\) pixels"):
            batch(edge, size)
