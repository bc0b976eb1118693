"""DistilBERT's comparison of the directions of hidden states.

B rows, L positions, H features.
"""

from torch import Tensor

from hfkd.losses.context import BuildContext
from hfkd.losses.features.hidden import StatePairs, a_row_a_sample, over_positions
from hfkd.losses.features.maps import in_float32
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.feature_keys import Layer

EPS = 1e-12


@register_objective("hidden_cosine")
@checked
class HiddenCosine(StatePairs):
    """DistilBERT's cosine loss (Sanh et al. 2019): the directions of the last block's states.

        l_s = mean over positions of  1 - s . t / sqrt((|s|^2 + 1e-12) (|t|^2 + 1e-12))

    over the sample's positions that are no padding; both networks have the same width, and nothing is trained beside
    the student. The authors take the mean over the tokens of the batch, so that long rows count more; here a row counts
    as a row. Their weights: 5 KD (T = 2), 2 masked language modelling, 1 this.
    """

    def __init__(self, layer: Layer = -1, teacher_layer: Layer | None = None) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer = layer, teacher_layer

    def build(self, context: BuildContext) -> None:
        super().build(context)
        self.same_width(context)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher),) = self.read(items)
        a_row_a_sample(items, len(student))
        return hidden_cosine(student, teacher, items.mask)


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
