"""FitNet: the student's map, through a regressor, should match the teacher's.

S images, C channels, H and W pixels.
"""

from torch import Tensor

from hfkd.losses.context import BuildContext
from hfkd.losses.features.maps import mean_squares
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.features.regressor import Regressor
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.feature_keys import Layer


@register_objective("fitnet")
@checked
class FitNet(LayerPairs):
    """Hints (Romero et al., ICLR 2015): l_s = mean_chw (r(F_s) - F_t)^2 at one stage.

    r is a convolution, batch norm and ReLU, which are trained with the student. RepDistiller and mdistiller use
    `layer=2` and a weight of 100 beside the cross-entropy, without KD: `"100 * fitnet(layer=2)"`, with ce_weight and
    kd_weight 1. The paper first trains the student up to the hint, and then by KD; these two and hfkd train both at
    once, and take the mean instead of half the sum. `teacher_layer`: the teacher's layer, if it differs from the
    student's.

    Raises ValueError when built for features that are not maps, or for sizes that no convolution maps to each other.
    """

    single = True
    maps = True

    def __init__(self, layer: Layer = 2, teacher_layer: Layer | None = None) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer = layer, teacher_layer

    def build(self, context: BuildContext) -> None:
        super().build(context)
        ((mine, its),) = self.pairs or ()
        self.regressor = Regressor(context.student.shape(mine), context.teacher.shape(its))

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        return self.of_layers(items)[0]

    def of_layers(self, items: Items) -> list[Tensor]:
        """The value of each sample at the only layer, in a list: [S]."""
        ((student, teacher),) = self.read(items)
        return [mean_squares(self.regressor(student), teacher)]
