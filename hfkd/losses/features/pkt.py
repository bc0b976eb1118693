"""PKT: similarities between images, as probabilities.

B images, D features.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.feature_keys import Layer

EPS = 1e-7


@register_objective("pkt")
@checked
class PKT(LayerPairs):
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018, cosine kernel).

        l_i = 1/B sum_j p_j|i log(p_j|i / q_j|i)
        p_j|i = K(t_i, t_j) / sum_k K(t_i, t_k),    K(a, b) = (1 + cos(a, b)) / 2

    q is the student's. The paper sums over i and j; here, as in released code, that sum is divided by B^2, j = i is
    included, and 1e-7 is added to both probabilities inside the logarithm. l_i is image i's row: its similarity to the
    other images. The weight of image i applies to its row, not to its place in other rows. Values are tiny (1e-5):
    mdistiller's weight is 30000 beside the cross-entropy. No parameters are trained besides the student's.
    """

    single = True
    relational = True
    rows = 2

    def __init__(self, layer: Layer = "pooled", teacher_layer: Layer | None = None) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer = layer, teacher_layer

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher),) = self.read(items)
        return pkt(student.flatten(1), teacher.flatten(1))


@in_float32
def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Each row's part [B] of sum_ij P_ij log(P_ij / Q_ij) / B, P the teacher's, Q the student's; features [B, D]."""
    p, q = _similarities(teacher), _similarities(student)
    return (p * ((p + EPS) / (q + EPS)).log()).mean(-1)


def _similarities(x: Tensor) -> Tensor:
    """(1 + cos(x_i, x_j)) / 2 as a distribution over j: [B, D] -> [B, B]."""
    u = x / (x.norm(dim=-1, keepdim=True) + EPS)
    cosine = (u @ u.T + 1) / 2
    return cosine / cosine.sum(-1, keepdim=True)
