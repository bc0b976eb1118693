"""SP: similarities between the activations of images.

B images.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32, unit
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.feature_keys import Layer


@register_objective("sp")
@checked
class SP(LayerPairs):
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019).

        l_i = 1/B sum_j (G_t[i, j] - G_s[i, j])^2,    G = F F^T of the flattened features, its rows of length 1

    so that mean_i l_i is the paper's ||G_t - G_s||_F^2 / B^2. l_i is image i's row: its similarity to each image. The
    weight of image i applies to its row, not to its column. Widths and sizes may differ; no parameters are trained
    besides the student's. mdistiller's weight is 3000, on the last stage.
    """

    single = True
    relational = True
    rows = 2

    def __init__(self, layer: Layer = -1, teacher_layer: Layer | None = None) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer = layer, teacher_layer

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher),) = self.read(items)
        return sp(student, teacher)


@in_float32
def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """The contribution of each row [B] to ||G_t - G_s||_F^2 / B; features [B, ...] of any two shapes."""
    return (_similarities(student) - _similarities(teacher)).square().mean(-1)


def _similarities(x: Tensor) -> Tensor:
    """G = F F^T of the flattened features, each row divided by its length: [B, B]."""
    x = x.flatten(1)
    return unit(x @ x.T)
