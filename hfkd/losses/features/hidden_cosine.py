"""DistilBERT's comparison of the directions of hidden states.

B rows, L positions, H features.
"""

from torch import Tensor

from hfkd.losses.features.hidden import over_positions
from hfkd.losses.features.maps import in_float32

EPS = 1e-12


@in_float32
def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(s, t) of each state: [..., H] twice -> [...]."""
    lengths = ((x.square().sum(-1) + EPS).sqrt() for x in (student, teacher))
    first, second = lengths
    return 1 - (student * teacher).sum(-1) / (first * second)


@in_float32
def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of 1 - cos(s, t) over each row's positions that are no padding: [B, L, H] twice -> [B]."""
    return over_positions(cosine_distance(student, teacher), mask)
