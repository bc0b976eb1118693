"""PKT: how similar images are to each other, as a probability.

B images, D features.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32

EPS = 1e-7


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
