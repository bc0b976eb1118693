"""DistilBERT's comparison of the directions of hidden states.

B rows, L positions, H features.
"""

import torch
from torch import Tensor

from hfkd.losses.context import BuildContext
from hfkd.losses.features.hidden import StatePairs, a_row_a_sample, over_positions
from hfkd.losses.features.maps import in_float32, through
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.feature_keys import Layer, LayerMap, Layers

EPS = 1e-12


@register_objective("hidden_cosine")
@checked
class HiddenCosine(StatePairs):
    """DistilBERT's cosine loss (Sanh et al. 2019): the directions of the last block's states.

        l_s = sum over layers of  mean over positions of  1 - s . t / sqrt((|s|^2 + 1e-12) (|t|^2 + 1e-12))

    over the sample's positions that are not padding. As in the paper, the default is the last block, for networks of
    the same width, without additional parameters. More layers are chosen as in `hidden_mse`, by a map or 'uniform'.
    With `projection=True`, for a narrower student, W s + b is compared, with one W [H_s, H_t] and b for all layers. The
    authors take the mean over the tokens of the batch, so that long rows count more; here all rows count the same.
    Published weights: 5 for KD (T = 2), 2 for masked language modelling, 1 for this loss.
    """

    def __init__(
        self,
        layers: Layer | Layers | LayerMap = -1,
        teacher_layers: Layer | Layers | None = None,
        projection: bool = False,
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers, self.projection = layers, teacher_layers, projection

    def build(self, context: BuildContext) -> None:
        super().build(context)
        self.project = self.projected(context, self.projection)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        values = [hidden_cosine(through(self.project, s), t, mask) for s, t, mask in self.states(items)]
        a_row_a_sample(items, len(values[0]))
        return torch.stack(values).sum(0)


@in_float32
def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos(s, t) of each state: [..., H] twice -> [...]."""
    lengths = ((x.square().sum(-1) + EPS).sqrt() for x in (student, teacher))
    first, second = lengths
    return 1 - (student * teacher).sum(-1) / (first * second)


@in_float32
def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of 1 - cos(s, t) over each row's positions that are not padding: [B, L, H] twice -> [B]."""
    return over_positions(cosine_distance(student, teacher), mask)
