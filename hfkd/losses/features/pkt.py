"""PKT: how similar images are to each other, as a probability.

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

    q is the student's. The paper sums over i and j; here and in released code that sum is divided by B^2, j = i counts
    too, and both probabilities are 1e-7 larger inside the logarithm. l_i is image i's row: how its neighbours are
    ranked. A weight of image i weighs its row, not its place in others' rows. Values are tiny (1e-5): mdistiller's
    weight is 30000 beside the labels. Nothing is trained beside the student.
    """

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
    """The rows' shares [B] of sum_ij P_ij log(P_ij / Q_ij) / B, P the teacher's, Q the student's; features [B, D]."""
    p, q = _similarities(teacher), _similarities(student)
    return (p * ((p + EPS) / (q + EPS)).log()).mean(-1)


def _similarities(x: Tensor) -> Tensor:
    """(1 + cos(x_i, x_j)) / 2 as a distribution over j: [B, D] -> [B, B]."""
    u = x / (x.norm(dim=-1, keepdim=True) + EPS)
    cosine = (u @ u.T + 1) / 2
    return cosine / cosine.sum(-1, keepdim=True)
