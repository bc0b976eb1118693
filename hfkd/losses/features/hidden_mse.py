"""TinyBERT's comparison of hidden states.

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


@register_objective("hidden_mse")
@checked
class HiddenMSE(StatePairs):
    """TinyBERT's hidden states and embeddings (Jiao et al., Findings of EMNLP 2020).

        l_s = sum over layers of  mean over positions and the teacher's width of  (H_s W + b - H_t)^2

    One W [H_s, H_t] and b are shared by all layers and trained with the student; `projection=False` leaves them out,
    for networks of the same width, such as a student made of its teacher's layers. Layer 0 is the embeddings. Without
    `teacher_layers` the student's layer i is compared with the teacher's layer r i, r = L_t / L_s. Other pairs are
    given by a map, layers={0: 0, 1: 3, 2: 5}, or spread evenly by teacher_layers='uniform'. A value depends on its own
    sample only. Padding is left out; `count_padding=True` includes it, as the authors' code does, whose values
    therefore depend on the longest row of the batch. TinyBERT first trains on this loss and `attention_scores`, both
    with weight 1, without labels (ce_weight=0), then in a second run on the predictions.
    """

    def __init__(
        self,
        layers: Layer | Layers | LayerMap = "0:",
        teacher_layers: Layer | Layers | None = None,
        count_padding: bool = False,
        projection: bool = True,
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers, self.count_padding = layers, teacher_layers, count_padding
        self.projection = projection

    def build(self, context: BuildContext) -> None:
        super().build(context)
        self.project = self.projected(context, self.projection)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        values = [
            squared_difference(through(self.project, s), t, None if self.count_padding else mask)
            for s, t, mask in self.states(items)
        ]
        a_row_a_sample(items, len(values[0]))
        return torch.stack(values).sum(0)


@in_float32
def squared_difference(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean squared difference of the states [B, L, H] of each row [B], over its positions that are not padding."""
    return over_positions((student - teacher).square().mean(-1), mask)
