"""NST: which patterns the channels of a map show.

B images, C channels, H and W pixels, P = H W.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32, shrunk_alike, unit


@in_float32
def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared mean discrepancy of the channels of each image [B], kernel k(a, b) = (a . b)^2; maps [B, C, H, W]."""
    s, t = (unit(x.flatten(2)) for x in shrunk_alike(student, teacher))  # [B, C, P]
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """The mean of (a_c . b_d)^2 over all pairs of channels c, d: [B]."""
    return (a @ b.transpose(-1, -2)).square().mean((-1, -2))
