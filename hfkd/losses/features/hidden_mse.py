"""TinyBERT's comparison of hidden states.

B rows, L positions, H features.
"""

from torch import Tensor

from hfkd.losses.features.hidden import over_positions
from hfkd.losses.features.maps import in_float32


@in_float32
def squared_difference(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean squared difference of the states [B, L, H] of each row [B], over its positions that are no padding."""
    return over_positions((student - teacher).square().mean(-1), mask)
