"""VID: the likelihood of the teacher's map given the student's, a Gaussian with one variance per channel.

B images, C channels, H and W pixels, s student's, t teacher's.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfkd.losses.context import BuildContext
from hfkd.losses.features.maps import in_float32, shrunk_alike, through
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Positive, checked, fitting
from hfkd.utils.feature_keys import Layer, Layers

MIN_VARIANCE = 1e-5


@register_objective("vid")
@checked
class VID(LayerPairs):
    """Variational information distillation (Ahn et al., CVPR 2019).

        l_s = sum over layers of  mean_chw ((mu(F_s) - F_t)^2 / v_c + log v_c) / 2
        v_c = softplus(log_scale_c) + 1e-5

    mu (three 1x1 convolutions) and log_scale (initially v = `variance`) are trained with the student. The larger map is
    pooled to the size of the smaller. The value may be negative; its part log v is the same for all samples, and is
    weighted like the rest. Published weight: 1, on all stages but the stem. In mdistiller log_scale is in no optimizer,
    so that v stays 5 (`train_variance=False`); here it is trained, as in the paper and in RepDistiller.
    """

    maps = True
    divergence = False

    def __init__(
        self,
        layers: Layer | Layers = "1:",
        teacher_layers: Layer | Layers | None = None,
        variance: Positive = 5.0,
        train_variance: bool = True,
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers = layers, teacher_layers
        self.variance, self.train_variance = variance, train_variance
        fitting("VID", "variance - 1e-5", variance - MIN_VARIANCE, Positive)

    def build(self, context: BuildContext) -> None:
        super().build(context)
        widths = [(context.student.shape(s)[0], context.teacher.shape(t)[0]) for s, t in self.pairs or ()]
        self.gaussians = nn.ModuleList(Gaussian(*pair, self.variance) for pair in widths)
        for model in self.gaussians:
            model.log_scale.requires_grad_(self.train_variance)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        return torch.stack(self.of_layers(items)).sum(0)

    def of_layers(self, items: Items) -> list[Tensor]:
        """The value of each sample at each layer: [S] each."""
        pairs = list(self.read(items))
        return [model(*maps) for model, maps in zip(self.gaussians, pairs, strict=True)]


class Gaussian(nn.Module):
    """N(mu(F_s), v) for the teacher's map: mu is three 1x1 convolutions, v = softplus(log_scale) + 1e-5 per channel."""

    def __init__(self, student_width: int, teacher_width: int, variance: float = 5.0) -> None:
        super().__init__()
        widths = (student_width, teacher_width, teacher_width, teacher_width)
        first, second, third = (nn.Conv2d(i, o, 1, bias=False) for i, o in pairwise(widths))
        self.mu = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.log_scale = nn.Parameter(torch.full((teacher_width,), math.log(math.expm1(variance - MIN_VARIANCE))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """-log N(F_t) without its constant, for each image [B]; maps [B, C, H, W]."""
        student, teacher = shrunk_alike(student, teacher)
        return negative_log_likelihood(through(self.mu, student), teacher, self.log_scale)


@in_float32
def negative_log_likelihood(mean: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    """mean_chw ((mean - target)^2 / v_c + log v_c) / 2 of each image: [B, C, H, W] twice, [C] -> [B]."""
    variance = (F.softplus(log_scale) + MIN_VARIANCE).view(-1, 1, 1)
    return ((mean - target).square() / variance + variance.log()).flatten(1).mean(1) / 2
