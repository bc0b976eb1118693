"""VID: how well the student's map predicts the teacher's, as a Gaussian with a variance of its own for each channel.

B images, C channels, H and W pixels, s student's, t teacher's.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.losses.features.maps import in_float32, shrunk_alike

MIN_VARIANCE = 1e-5


class Gaussian(nn.Module):
    """N(mu(F_s), v) of the teacher's map: mu three 1x1 convolutions, v = softplus(log_scale) + 1e-5 of each channel."""

    def __init__(self, student_width: int, teacher_width: int, variance: float = 5.0) -> None:
        super().__init__()
        widths = (student_width, teacher_width, teacher_width, teacher_width)
        first, second, third = (nn.Conv2d(i, o, 1, bias=False) for i, o in pairwise(widths))
        self.mu = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.log_scale = nn.Parameter(torch.full((teacher_width,), math.log(math.expm1(variance - MIN_VARIANCE))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """-log N(F_t) without its constant, of each image [B]; maps [B, C, H, W]."""
        student, teacher = shrunk_alike(student, teacher)
        return negative_log_likelihood(self.mu(student), teacher, self.log_scale)


@in_float32
def negative_log_likelihood(mean: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    """mean_chw ((mean - target)^2 / v_c + log v_c) / 2 of each image: [B, C, H, W] twice, [C] -> [B]."""
    variance = (F.softplus(log_scale) + MIN_VARIANCE).view(-1, 1, 1)
    return ((mean - target).square() / variance + variance.log()).flatten(1).mean(1) / 2
