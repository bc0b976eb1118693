"""AT: spatial attention maps, the mean square of a map over its channels.

B images, C channels, H and W pixels.
"""

from torch import Tensor

from hfkd.losses.features.maps import in_float32, shrunk_alike, unit
from hfkd.losses.features.pairs import SumOverMaps
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked


@register_objective("at")
@checked
class AT(SumOverMaps):
    """Attention transfer (Zagoruyko and Komodakis, ICLR 2017): activation-based, with p = 2.

        l_s = sum over layers of  mean_hw (a_s - a_t)^2,    a = q / ||q||_2,    q = mean_c F_c^2 over H W

    The paper takes the norm of that difference; its released code, RepDistiller and mdistiller take the mean of its
    squares, with a weight of 1000 beside the cross-entropy, on all stages but the stem. The larger map is pooled to the
    size of the smaller before it is squared. A value depends on its own sample only. No parameters are trained besides
    the student's.
    """

    def of_maps(self, student: Tensor, teacher: Tensor) -> Tensor:
        return attention_distance(student, teacher)


@in_float32
def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """mean_hw (a_s - a_t)^2 [B] of two maps [B, C, H, W]."""
    a_s, a_t = (unit(x.square().mean(1).flatten(1)) for x in shrunk_alike(student, teacher))  # [B, H W]
    return (a_s - a_t).square().mean(1)
