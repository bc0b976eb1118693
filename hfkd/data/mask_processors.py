"""Image processors beside masks: they are given the images alone, so they may not move a pixel from its label."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

# What a processor may do to the place of a pixel, as its settings are called.
MOVES = ("do_resize", "do_center_crop", "do_pad", "do_random_crop")
STILL = 0.01  # of the range: rounding and resampling of a ramp give a tenth of it, a crop to 0.95 the double


def refuse_moved(processor: Any, size: Sequence[int], made: Sequence[int]) -> None:
    """Raise ValueError for a processor that would part images from their masks, which it is not given.

    size: height and width of the images it gets; made: of its tensors, which the masks have. Two ramps are prepared
    with all that it does, and with nothing that moves a pixel: where they differ, it crops or shifts.
    """
    name, says = f"processing_class={type(processor).__name__}", processor.to_dict()
    through = "give both through it in the dataset's transform, processor(images, segmentation_maps)"
    if says.get("do_reduce_labels"):
        raise ValueError(
            f"{name} has do_reduce_labels=True and prepares the images alone, so that the masks' classes would be one "
            f"too high, and 0 a class: {through}, or set do_reduce_labels=False where the masks are reduced already"
        )
    still = {move: False for move in MOVES if move in says}
    mine, its = (
        torch.as_tensor(np.asarray(processor([picture], return_tensors="np", **how)["pixel_values"][0]))
        for picture, how in ((_ramps(*size), {}), (_ramps(*made), still))
    )
    if mine.shape != its.shape or (mine - its).abs().mean() > STILL * (its.max() - its.min()):
        raise ValueError(
            f"{name} crops, pads or shifts images of {tuple(size)} pixels, and the masks beside them stay as they are: "
            f"{through}, or resize and crop both there and set do_resize=False, do_center_crop=False"
        )


def _ramps(height: int, width: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom, blue along both."""
    y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
    planes = np.stack(np.broadcast_arrays(x[None], y[:, None], (x[None] + y[:, None]) / 2), -1)
    return Image.fromarray((255 * planes).round().astype(np.uint8))
