"""NST: the distribution of a map's channels, compared by maximum mean discrepancy.

B images, C channels, H and W pixels, P = H W.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32, shrunk_alike, unit
from hfkd.losses.features.pairs import SumOverMaps
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked


@register_objective("nst")
@checked
class NST(SumOverMaps):
    """Neuron selectivity transfer (Huang and Wang, 2017), with the polynomial kernel k(a, b) = (a . b)^2.

        l_s = sum over layers of  mean_cc' k(t_c, t_c') + mean_cc' k(s_c, s_c') - 2 mean_cc' k(s_c, t_c')

    s_c is channel c of the student's map as a vector of length 1. The larger map is pooled to the size of the smaller.
    A value depends on its own sample only. No parameters are trained besides the student's. mdistiller's weight is 50,
    on all stages but the stem. The kernel is computed as a batched product of channels [B, C_s, C_t]; the released code
    materialises [B, C_s, C_t, H W].
    """

    def of_maps(self, student: Tensor, teacher: Tensor) -> Tensor:
        return nst(student, teacher)


@in_float32
def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """The squared mean discrepancy of the channels of each image [B], kernel k(a, b) = (a . b)^2; maps [B, C, H, W]."""
    s, t = (unit(x.flatten(2)) for x in shrunk_alike(student, teacher))  # [B, C, P]
    return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """The mean of (a_c . b_d)^2 over all pairs of channels c, d: [B]."""
    return (a @ b.transpose(-1, -2)).square().mean((-1, -2))
