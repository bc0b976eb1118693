"""CAT-KD: where in the image each class is seen.

B images, C classes, D channels, H and W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.features.maps import in_float32, unit


@in_float32
def activation_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps: the last map [B, D, H, W] and the linear classifier's weight [C, D] -> [B, C, H, W].

    Their spatial mean is the logits, but for the classifier's bias.
    """
    return torch.einsum("bdhw,cd->bchw", features, weight)


@in_float32
def catkd(student: Tensor, teacher: Tensor, size: int = 2, normalized: bool = False) -> Tensor:
    """The mean squared difference of each image's activation maps [B], both [B, C, H, W] pooled to `size` x `size`."""
    s, t = (F.adaptive_avg_pool2d(x, size).flatten(2) for x in (student, teacher))  # [B, C, size * size]
    if normalized:
        s, t = unit(s), unit(t)
    return (s - t).square().flatten(1).mean(1)
