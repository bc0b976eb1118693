"""SP: which images activate a layer alike.

B images.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32, unit


@in_float32
def sp(student: Tensor, teacher: Tensor) -> Tensor:
    """The rows' shares [B] of ||G_t - G_s||_F^2 / B; features [B, ...] of any two shapes."""
    return (_similarities(student) - _similarities(teacher)).square().mean(-1)


def _similarities(x: Tensor) -> Tensor:
    """G = F F^T of the flattened features, each row divided by its length: [B, B]."""
    x = x.flatten(1)
    return unit(x @ x.T)
