"""OFD: the teacher's map before its ReLU, where what is negative counts as one margin.

B images, C channels, H and W pixels.
"""

import math

import torch
from torch import Tensor, nn

from hfkd.losses.features.maps import in_float32, resized


class Connector(nn.Sequential):
    """A 1x1 convolution to the teacher's channels and a batch norm, without a ReLU."""

    def __init__(self, student_width: int, teacher_width: int) -> None:
        conv = nn.Conv2d(student_width, teacher_width, 1, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2 / teacher_width))
        super().__init__(conv, nn.BatchNorm2d(teacher_width))


def margins(batch_norm: nn.BatchNorm2d) -> Tensor:
    """E[x | x < 0] of each channel, x ~ N(bias, weight^2) as the batch norm makes it: [C], below 0.

    -3 |weight| where less than one value in a thousand is negative.
    """
    scale = batch_norm.weight.detach().double().abs().clamp(min=1e-12)
    mean = batch_norm.bias.detach().double()
    share = torch.special.ndtr(-mean / scale)
    density = torch.exp(-((mean / scale) ** 2) / 2) / math.sqrt(2 * math.pi)
    return torch.where(share > 1e-3, mean - scale * density / share.clamp(min=1e-3), -3 * scale)


@in_float32
def ofd(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """The partial L2 distance of each image [B]: student [B, C, H, W] through its connector, teacher before its ReLU.

    sum_chw (y - max(t, m))^2 where y > max(t, m) or t > 0; the teacher's map is pooled to the student's size.
    """
    teacher = resized(teacher, *student.shape[-2:])
    target = torch.maximum(teacher, margin.to(teacher.dtype).view(-1, 1, 1))
    counts = (student > target) | (teacher > 0)
    return ((student - target).square() * counts).flatten(1).sum(1)
