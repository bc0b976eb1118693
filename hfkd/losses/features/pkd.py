"""PKD: the hidden states of the first token, layer by layer.

B rows, K layers, H features.
"""

import torch
from torch import Tensor

from hfkd.losses.context import BuildContext
from hfkd.losses.features.hidden import StatePairs, a_row_a_sample
from hfkd.losses.features.maps import in_float32, unit
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.feature_keys import Layer, Layers


@register_objective("pkd")
@checked
class PKD(StatePairs):
    """Patient knowledge distillation (Sun et al., EMNLP 2019): the [CLS] states of inner blocks.

        l_s = mean over layers and width of  (h_s / |h_s| - h_t / |h_t|)^2

    h is the state of the row's first token that is not padding; `normalize=False` leaves out the division by the norms.
    The paper sums over the width; the authors' code and hfkd take the mean. The defaults are PKD-Skip from 12 blocks to
    6. For 12 to 3 it is (1, 2) and (4, 8); PKD-Last for 12 to 6 is teacher_layers=(7, 8, 9, 10, 11). Both networks must
    have the same width; no parameters are trained besides the student's. Published weights: 10 to 1000, searched.
    """

    def __init__(
        self,
        layers: Layer | Layers = (1, 2, 3, 4, 5),
        teacher_layers: Layer | Layers | None = (2, 4, 6, 8, 10),
        normalize: bool = True,
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers, self.normalize = layers, teacher_layers, normalize

    def build(self, context: BuildContext) -> None:
        super().build(context)
        self.same_width(context)

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        students, teachers, masks = zip(*self.states(items), strict=True)
        a_row_a_sample(items, len(students[0]))
        s, t = (
            torch.stack([first_states(x, mask) for x, mask in zip(states, masks, strict=True)], 1)
            for states in (students, teachers)
        )
        return pkd(s, t, self.normalize)


def first_states(states: Tensor, mask: Tensor | None) -> Tensor:
    """The state of each row's first position that is not padding: [B, L, H] -> [B, H]."""
    if mask is None:
        return states[:, 0]
    return states[torch.arange(len(states), device=states.device), mask.int().argmax(1)]


@in_float32
def pkd(student: Tensor, teacher: Tensor, normalize: bool = True) -> Tensor:
    """The mean squared difference of the first tokens' states, of length 1 with `normalize`: [B, K, H] twice -> [B]."""
    s, t = (unit(x) if normalize else x for x in (student, teacher))
    return (s - t).square().mean((-1, -2))
