"""RKD: distances between images and angles at them.

B images, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.features.maps import in_float32, unit


@in_float32
def rkd(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """The rows' shares [B]: of pairs by their first image, of triplets by the image at the vertex; features [B, D]."""
    s, t = (x.unsqueeze(0) - x.unsqueeze(1) for x in (student, teacher))  # [B, B, D]: x_b - x_a at [a, b]
    shares = student.new_zeros(len(student))
    if distance:
        shares = shares + distance * F.smooth_l1_loss(_distances(s), _distances(t), reduction="none").mean(-1)
    if angle:
        shares = shares + angle * F.smooth_l1_loss(_angles(s), _angles(t), reduction="none").mean((-1, -2))
    return shares


def _distances(difference: Tensor) -> Tensor:
    """||x_a - x_b|| over its mean over pairs: [B, B]. The mean has a gradient too."""
    d = difference.square().sum(-1).clamp(min=1e-12).sqrt()
    d = d.masked_fill(torch.eye(len(d), dtype=torch.bool, device=d.device), 0.0)
    pairs = max(len(d) * (len(d) - 1), 1)
    return d / (d.sum() / pairs).clamp(min=1e-12)


def _angles(difference: Tensor) -> Tensor:
    """The cosine of the angle between b and c seen from a, at [a, b, c]."""
    e = unit(difference)
    return e @ e.transpose(-1, -2)
