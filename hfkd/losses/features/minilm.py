"""MiniLM: self-attention relations of a layer's queries, keys and values.

B rows, L positions, A relation heads, W width of all heads, d = W / A.
"""

import math

import torch
from torch import Tensor

from hfkd.losses.context import BuildContext
from hfkd.losses.features.hidden import StatePairs, a_row_a_sample, seen_positions
from hfkd.losses.features.maps import in_float32
from hfkd.losses.items import Items
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import Count, checked
from hfkd.utils.attention import Attention
from hfkd.utils.feature_keys import Layer

PARTS = {"q": "query", "k": "key", "v": "value"}


@register_objective("minilm")
@checked
class MiniLM(StatePairs):
    """MiniLMv2 (Wang et al., Findings of ACL 2021): self-attention relations of one layer.

        l_s = sum over relations of  mean over heads and positions of  KL(R_t || R_s)
        R = softmax(X X'^T / sqrt(d)),    (X, X') of `compared`: "qq" queries with queries, "kk" keys with keys, "vv"
        values with values

    The vectors of all heads are concatenated and split into `heads` relation heads, so that networks with different
    numbers of heads and different widths can be compared. Padding is left out. Version 1 (Wang et al., NeurIPS 2020) is
    minilm(compared=("qk", "vv"), heads=12), where both networks have 12 heads: "qk" is the attention itself. The
    paper's teacher layers are the last of 12 and the 21st of 24. No parameters are trained besides the student's; the
    paper uses no other loss (ce_weight=0).
    """

    single = True

    def __init__(
        self,
        layer: Layer = "attention:-1",
        teacher_layer: Layer | None = None,
        heads: Count = 48,
        compared: tuple[str, ...] = ("qq", "kk", "vv"),
    ) -> None:
        super().__init__(layer, teacher_layer)
        self.layer, self.teacher_layer, self.heads, self.compared = layer, teacher_layer, heads, compared
        if not compared or any(len(pair) != 2 or set(pair) - set(PARTS) for pair in compared):
            raise ValueError(f"MiniLM: compared={compared!r} must be pairs of q, k and v, such as ('qq', 'kk', 'vv')")

    def build(self, context: BuildContext) -> None:
        super().build(context)
        for mine, theirs in self.pairs or ():
            shapes = context.student.shape(mine), context.teacher.shape(theirs)  # [heads, L, width of one]
            widths = [shape[0] * shape[-1] for shape in shapes]
            if any(width % self.heads for width in widths):
                raise ValueError(
                    f"{self!r}: queries of widths {widths[0]} (student) and {widths[1]} (teacher) cannot be cut into "
                    f"{self.heads} relation heads: choose a number that divides both"
                )

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        ((student, teacher, mask),) = self.states(items)
        a_row_a_sample(items, len(student.query))
        seen, real = seen_positions(student, mask)
        values = [
            relation_divergence(self._pair(student, pair), self._pair(teacher, pair), self.heads, seen & real)
            for pair in self.compared
        ]
        return torch.stack(values).sum(0)

    def _pair(self, attention: Attention, pair: str) -> tuple[Tensor, Tensor]:
        """The two of queries, keys and values that `pair` names, with all heads concatenated: [B, L, W] each."""
        first, second = (getattr(attention, PARTS[letter]).transpose(1, 2).flatten(2) for letter in pair)
        for states in (first, second):
            if states.shape[-1] % self.heads or states.shape != first.shape:
                raise ValueError(
                    f"{self!r}: {pair!r} of widths {first.shape[-1]} and {second.shape[-1]} cannot be cut into "
                    f"{self.heads} relation heads: choose a number that divides both networks' widths"
                )
        return first, second


@in_float32
def relation_divergence(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], heads: int, seen: Tensor
) -> Tensor:
    """KL of the teacher's relations from the student's, averaged over the heads and the row's positions: [B].

    Each network gives (X, X'), [B, L, W], from which R = softmax(X X'^T / sqrt(d)) is computed for each head. seen: the
    positions [B, 1, L, L] that each row of R includes; a row without any is not counted.
    """
    log_p, log_q = (_log_relation(*states, heads, seen) for states in (teacher, student))
    rows = seen.any(-1)  # [B, 1, L]
    divergence = torch.where(seen, log_p.exp() * (log_p - log_q), 0.0).sum(-1)  # [B, A, L]
    return (divergence * rows).sum((-1, -2)) / (heads * rows.sum((-1, -2)).clamp(min=1))


def _log_relation(x: Tensor, other: Tensor, heads: int, seen: Tensor) -> Tensor:
    """log softmax(X X'^T / sqrt(d)) over the positions in `seen`, [B, A, L, L]; finite everywhere."""
    x, other = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (x, other))  # [B, A, L, d]
    scores = x @ other.transpose(-1, -2) / math.sqrt(x.shape[-1])
    return torch.log_softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), -1)
