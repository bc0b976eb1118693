"""RKD: distances and angles between the features of images.

B images, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfkd.losses.features.maps import in_float32, unit
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import NotNegative, checked
from hfkd.utils.feature_keys import Layer


@register_objective("rkd")
@checked
class RKD(LayerPairs):
    """Relational knowledge distillation (Park et al., CVPR 2019); h is the Huber loss.

        l_i = distance 1/B sum_j h(psi_D(t_i, t_j) - psi_D(s_i, s_j)) + angle 1/B^2 sum_jk h(psi_A(t_j, t_i, t_k) - ...)
        psi_D = ||a - b|| / its mean over pairs, psi_A = cosine of the angle at the second of three images

    l_i is the contribution of image i: the pairs in which it is first, and the triplets with the angle at it. The
    weight of image i applies to these alone. As in released code the means are over all B^2 pairs and B^3 triplets,
    including those with equal indices (0). Distances are computed from differences rather than a Gram matrix, which
    would lose precision. The weights 25 and 50 have the paper's ratio; mdistiller multiplies the sum by 1 beside the
    cross-entropy. No parameters are trained besides the student's.
    """

    single = True
    relational = True
    rows = 3

    def __init__(
        self,
        layer: Layer = "pooled",
        teacher_layer: Layer | None = None,
        distance: NotNegative = 25.0,
        angle: NotNegative = 50.0,
    ) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer, self.distance, self.angle = layer, teacher_layer, distance, angle
        if not (distance or angle):
            raise ValueError("RKD: distance and angle are both 0: nothing would be compared; raise one")

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher),) = self.read(items)
        return rkd(student.flatten(1), teacher.flatten(1), self.distance, self.angle)


@in_float32
def rkd(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Each row's part [B]: of pairs by their first image, of triplets by the image at the vertex; features [B, D]."""
    s, t = (x.unsqueeze(0) - x.unsqueeze(1) for x in (student, teacher))  # [B, B, D]: x_b - x_a at [a, b]
    shares = student.new_zeros(len(student))
    if distance:
        shares = shares + distance * F.smooth_l1_loss(_distances(s), _distances(t), reduction="none").mean(-1)
    if angle:
        shares = shares + angle * F.smooth_l1_loss(_angles(s), _angles(t), reduction="none").mean((-1, -2))
    return shares


def _distances(difference: Tensor) -> Tensor:
    """||x_a - x_b|| divided by its mean over pairs: [B, B]. The gradient flows through the mean too."""
    d = difference.square().sum(-1).clamp(min=1e-12).sqrt()
    d = d.masked_fill(torch.eye(len(d), dtype=torch.bool, device=d.device), 0.0)
    pairs = max(len(d) * (len(d) - 1), 1)
    return d / (d.sum() / pairs).clamp(min=1e-12)


def _angles(difference: Tensor) -> Tensor:
    """The cosine of the angle at a between b and c, at index [a, b, c]."""
    e = unit(difference)
    return e @ e.transpose(-1, -2)
