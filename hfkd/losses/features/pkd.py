"""PKD: the first token's states, layer by layer.

B rows, K layers, H features.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32, unit


@in_float32
def pkd(student: Tensor, teacher: Tensor, normalize: bool = True) -> Tensor:
    """The mean squared difference of the first tokens' states, of length 1 with `normalize`: [B, K, H] twice -> [B]."""
    s, t = (unit(x) if normalize else x for x in (student, teacher))
    return (s - t).square().mean((-1, -2))
