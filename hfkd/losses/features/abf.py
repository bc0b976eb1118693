"""ReviewKD's fusion of a student's maps, from the last to the first, and its comparison at several scales.

B images, C channels, H and W pixels, M middle channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.losses.features.maps import in_float32


class AttentionFusion(nn.Module):
    """ABF (Eq. 5 and Fig. 3b): a level's map, mixed by two attention maps with what comes from the level above.

    h = BN(conv1x1(x)); below the top a0, a1 = sigmoid(conv1x1([h, y])), h = a0 h + a1 y, y the map from above at the
    size of x; out = BN(conv3x3(h')), h' = h at the teacher's size. h' is handed down, not out.
    """

    def __init__(self, width: int, middle: int, teacher_width: int, top: bool) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width, middle, 1, bias=False)
        self.bn_in = nn.BatchNorm2d(middle)
        self.attention = None if top else nn.Conv2d(2 * middle, 2, 1)
        self.conv_out = nn.Conv2d(middle, teacher_width, 3, padding=1, bias=False)
        self.bn_out = nn.BatchNorm2d(teacher_width)
        for conv in (self.conv_in, self.conv_out):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, above: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(out [B, C_t, *size], h' [B, M, *size]) of x [B, C_s, H, W] and the h' of the level above."""
        h = self.bn_in(self.conv_in(x))
        if self.attention is not None:
            assert above is not None
            y = F.interpolate(above, size=h.shape[-2:], mode="nearest")
            of_h, of_y = torch.sigmoid(self.attention(torch.cat([h, y], 1))).split(1, 1)
            h = h * of_h + y * of_y
        if list(h.shape[-2:]) != list(size):
            h = F.interpolate(h, size=tuple(size), mode="nearest")
        return self.bn_out(self.conv_out(h)), h


class Review(nn.Module):
    """The chain of fusions: student maps [B, C, H, W], first level first -> maps of the teacher's shapes."""

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[int], max_middle: int = 512) -> None:
        super().__init__()
        middle, last = min(max_middle, student_widths[-1]), len(student_widths) - 1
        self.levels = nn.ModuleList(
            AttentionFusion(width, middle, wanted, top=k == last)
            for k, (width, wanted) in enumerate(zip(student_widths, teacher_widths, strict=True))
        )

    def forward(self, maps: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> list[Tensor]:
        above, fused = None, []
        for level, x, size in zip(reversed(self.levels), reversed(maps), reversed(sizes), strict=True):
            out, above = level(x, above, size)
            fused.append(out)
        return fused[::-1]


@in_float32
def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """HCL of each image [B]: mean squared differences of the maps [B, C, H, W], and of both pooled to 4, 2 and 1.

    Their weights 1, 1/2, 1/4, 1/8 are divided by the sum of those that are used: sizes below the map's height.
    """
    total, weights, weight = _mse(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= student.shape[-2]:
            continue
        weight /= 2
        total = total + weight * _mse(*(F.adaptive_avg_pool2d(x, size) for x in (student, teacher)))
        weights += weight
    return total / weights


def _mse(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)
