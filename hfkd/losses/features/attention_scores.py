"""TinyBERT's comparison of attention scores.

B rows, A heads, L positions.
"""

import torch
from torch import Tensor

from hfkd.losses.context import BuildContext
from hfkd.losses.features.hidden import StatePairs, a_row_a_sample, seen_positions
from hfkd.losses.features.maps import in_float32
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked
from hfkd.utils.attention import Attention
from hfkd.utils.feature_keys import Layer, LayerMap, Layers


@register_objective("attention_scores")
@checked
class AttentionScores(StatePairs):
    """TinyBERT's attention (Jiao et al., Findings of EMNLP 2020): the scores before the softmax.

        l_s = sum over layers of  mean over heads and pairs of positions of  (A_s - A_t)^2,    A = Q K^T / sqrt(d)

    over pairs of positions of the sample that are not padding; masked scores count as equal. With `count_padding=True`
    the mean is over all pairs, as in the authors' code, whose values therefore depend on the longest row of the batch.
    Both networks must have the same number of heads. Without `teacher_layers` the student's block i is compared with
    the teacher's block r i, r = L_t / L_s. Published weight: 1, together with `hidden_mse`. No parameters are trained
    besides the student's.
    """

    def __init__(
        self,
        layers: Layer | Layers | LayerMap = "attention:1:",
        teacher_layers: Layer | Layers | None = None,
        count_padding: bool = False,
    ) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers, self.count_padding = layers, teacher_layers, count_padding

    def build(self, context: BuildContext) -> None:
        super().build(context)
        for mine, theirs in self.pairs or ():
            heads = context.student.shape(mine)[0], context.teacher.shape(theirs)[0]
            if heads[0] != heads[1]:
                raise ValueError(
                    f"{self!r}: the student has {heads[0]} attention heads and the teacher {heads[1]}, but heads are "
                    "compared one by one: use a student with the same number of heads, or minilm"
                )

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        values = [self._difference(*pair) for pair in self.states(items)]
        a_row_a_sample(items, len(values[0]))
        return torch.stack(values).sum(0)

    def _difference(self, student: Attention, teacher: Attention, mask: Tensor | None) -> Tensor:
        seen, real = seen_positions(student, mask)
        counted = torch.ones_like(real) if self.count_padding else real
        return scores_difference(scores(student), scores(teacher), seen, counted)


def scores(attention: Attention) -> Tensor:
    """scale Q K^T of each head, without the mask: [B, A, L, L]."""
    return _scaled_product(attention.query, attention.key, attention.scale)


@in_float32
def _scaled_product(query: Tensor, key: Tensor, scale: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]  # number of queries that share a key
    return scale * query @ key.repeat_interleave(groups, 1).transpose(-1, -2)


@in_float32
def scores_difference(student: Tensor, teacher: Tensor, seen: Tensor, counted: Tensor) -> Tensor:
    """The mean squared difference of the scores before the softmax, both [B, A, L, L], of each row [B].

    seen: where a query attends to a key; other scores count as equal. counted: the pairs that the mean is over. Both
    are boolean, [B, 1, L, L].
    """
    squares = torch.where(seen & counted, (student - teacher).square(), 0.0)
    pairs = counted.expand_as(squares).flatten(1).sum(1)
    return squares.flatten(1).sum(1) / pairs.clamp(min=1)
