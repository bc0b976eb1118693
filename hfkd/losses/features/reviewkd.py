"""ReviewKD: the student's maps, fused from the last to the first, are compared with the teacher's at several sizes.

B images, C channels, H and W pixels, M middle channels.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.losses.base import Requirements
from hfkd.losses.context import BuildContext
from hfkd.losses.features.maps import in_float32, mean_squares, through
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items, warmed_up
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Count, NotNegative, checked
from hfkd.utils.feature_keys import Layer, Layers


@register_objective("reviewkd")
@checked
class ReviewKD(LayerPairs):
    """Knowledge review (Chen et al., CVPR 2021).

        l_s = min(e / warmup_epochs, 1) * sum over levels of  HCL(ABF_k(F_s, k..n), F_t,k)_s

    The levels are the student's stages without the stem, after their ReLU, and the pooled features as a map of one
    pixel; the teacher's maps are those before the ReLU ("pre:1:"). ABF (`AttentionFusion`) fuses a level with all later
    ones, and HCL compares maps at several sizes. The width of the fusions is min(`max_middle`, width of the last
    level). A value depends on its own sample, except through the batch norms of the fusions. The fusions are trained
    with the student.

    e = 1 in the first epoch, as in mdistiller (0 in the authors' code); `warmup_epochs=0` switches the ramp off.
    Published weights beside the cross-entropy: 5 (WRN, ResNet8x4, ShuffleNetV1), 8 (ShuffleNetV2), 0.6 (ResNet20), 1
    (ResNet32); none for other students. EA-ReviewKD is this objective with `weighting="entropy"`. mdistiller's EA files
    crash without the ramp and use log(100) for any number of classes.
    """

    def __init__(
        self,
        layers: Layer | Layers = ("1:", "pooled"),
        teacher_layers: Layer | Layers | None = ("pre:1:", "pooled"),
        warmup_epochs: NotNegative = 20,
        max_middle: Count = 512,
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers = layers, teacher_layers
        self.warmup_epochs, self.max_middle = warmup_epochs, max_middle

    def requirements(self) -> Requirements:
        return replace(super().requirements(), epochs=self.warmup_epochs)

    def build(self, context: BuildContext) -> None:
        super().build(context)
        students = [self._width("student", mine, context.student.shape(mine)) for mine, _ in self.pairs or ()]
        teachers = [self._width("teacher", theirs, context.teacher.shape(theirs)) for _, theirs in self.pairs or ()]
        self.review = Review(students, teachers, self.max_middle)

    def _width(self, network: str, key: str, shape: tuple[int, ...]) -> int:
        if len(shape) not in (1, 3):
            raise ValueError(
                f"{self!r}: layer {key!r} of the {network} has the shape {shape}, but a level is a map (channels, "
                "height, width) or pooled features (channels): name layers of a convolutional network"
            )
        return shape[0]

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        levels = ((_as_map(student), _as_map(teacher)) for student, teacher in self.read(items))
        students, teachers = zip(*levels, strict=True)
        fused = self.review(students, [x.shape[-2:] for x in teachers])
        values = [hierarchical_context(s, t) for s, t in zip(fused, teachers, strict=True)]
        return warmed_up(items.progress, self.warmup_epochs) * torch.stack(values).sum(0)


def _as_map(x: Tensor) -> Tensor:
    """Pooled features [B, C] as a map of one pixel; a map unchanged."""
    return x if x.ndim == 4 else x[..., None, None]


class AttentionFusion(nn.Module):
    """ABF: fuses a level's map with the map from the level above, by two attention maps.

    h = BN(conv1x1(x)); below the top a0, a1 = sigmoid(conv1x1([h, y])), h = a0 h + a1 y, y the map from above at the
    size of x; out = BN(conv3x3(h')), h' = h at the teacher's size. h', not out, is passed to the level below.
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
        h = self.bn_in(through(self.conv_in, x))
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
    """HCL of each image [B]: mean squared differences of the maps [B, C, H, W] and of both pooled to sizes 4, 2 and 1.

    Their weights 1, 1/2, 1/4, 1/8 are divided by the sum of those used, which are the sizes below the map's height.
    """
    total, weights, weight = mean_squares(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= student.shape[-2]:
            continue
        weight /= 2
        total = total + weight * mean_squares(*(F.adaptive_avg_pool2d(x, size) for x in (student, teacher)))
        weights += weight
    return total / weights
