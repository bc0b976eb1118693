"""What comparisons of a transformer's states share: means over a row's positions, and which layers go together.

B rows, L positions, H features.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hfkd.losses.context import BuildContext
from hfkd.losses.features.pairs import LayerPairs
from hfkd.losses.items import Items
from hfkd.utils.attention import Attention
from hfkd.utils.feature_keys import Layer, LayerMap, Layers, stages_of
from hfkd.utils.numbers import evenly_spread

UNIFORM = "uniform"


class StatePairs(LayerPairs):
    """`LayerPairs` of transformers; where no `teacher_layers` are named, every r-th of the teacher's.

    r = L_t / L_s: the student's layer i goes with the teacher's layer r i, its last with the last. With
    `teacher_layers="uniform"` the first goes with the first, the last with the last, and those between are spread
    evenly, as `prune_layers` keeps them: for networks whose depths are no multiples. Embeddings go with embeddings.
    """

    def __init__(self, layers: Layer | Layers | LayerMap, teacher_layers: Layer | Layers | None) -> None:
        self.uniform = teacher_layers == UNIFORM
        super().__init__(layers, None if self.uniform and not isinstance(layers, dict) else teacher_layers)
        onwards = [stages_of(key) for key in self.student_keys]
        if self.uniform and not (len(onwards) == 1 and onwards[0] and onwards[0][2] and onwards[0][1] in (0, 1)):
            raise ValueError(
                f"{type(self).__name__}: teacher_layers='uniform' spreads all blocks of the student over those of the "
                f"teacher, and layers={layers!r} are some: give layers='1:' ('0:' with the embeddings), or a map such "
                "as layers={1: 1, 2: 5}"
            )

    def build(self, context: BuildContext) -> None:
        mine, theirs = context.student.keys(self.student_keys), context.teacher.keys(self.teacher_keys)
        spread = self.student_keys == self.teacher_keys and len(mine) != len(theirs)
        self.pairs = tuple(zip(mine, self._spread(mine, theirs), strict=True)) if spread else self._paired(context)

    def _paired(self, context: BuildContext) -> tuple[tuple[str, str], ...]:
        super().build(context)
        return self.pairs or ()

    def _spread(self, mine: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
        """Every r-th of the teacher's layers up to its last; embeddings, layer 0, go with embeddings."""
        start = int(mine[0] == theirs[0] == "0")
        few, many = len(mine) - start, len(theirs) - start
        if self.uniform and 0 < few <= many:
            return theirs[:start] + tuple(theirs[start + k] for k in evenly_spread(few, many))
        if not few or many % few:
            raise ValueError(
                f"{self!r}: the student's {few} layers are not every second, third, ... of the teacher's {many}: name "
                "the teacher's as teacher_layers, as many as the student's"
                + ("" if self.uniform else ", or give teacher_layers='uniform'" if few < many else "")
            )
        return theirs[:start] + theirs[start + many // few - 1 :: many // few]

    def widths(self, context: BuildContext) -> tuple[int, int]:
        """The one width that the student's states have, and the teacher's. Raises ValueError where they differ."""
        found = []
        for name, network, keys in zip(
            ("student", "teacher"), (context.student, context.teacher), zip(*self.pairs or (), strict=True), strict=True
        ):
            shapes = {key: network.shape(key) for key in keys}
            if any(len(shape) != 2 for shape in shapes.values()) or len({shape[-1] for shape in shapes.values()}) != 1:
                raise ValueError(
                    f"{self!r}: the layers of the {name} have the shapes {shapes}, and states (positions, width) "
                    "of one width are compared: name blocks of a transformer"
                )
            found.append(next(iter(shapes.values()))[-1])
        return found[0], found[1]

    def projected(self, context: BuildContext, wanted: bool) -> nn.Module:
        """From the student's width to the teacher's; without one the states as they are, which raises ValueError unless
        both have one width.
        """
        if wanted:
            return nn.Linear(*self.widths(context))
        self.same_width(context)
        return nn.Identity()

    def same_width(self, context: BuildContext) -> None:
        """Raises ValueError unless student and teacher have states of one width."""
        student, teacher = self.widths(context)
        if student != teacher:
            raise ValueError(
                f"{self!r}: the student's states are {student} wide and the teacher's {teacher}, and they are compared "
                "without a projection: use hidden_mse or hidden_cosine with projection=True, or a student as wide"
            )


def a_row_a_sample(items: Items, rows: int) -> None:
    """Raise ValueError where rows hold several samples: then a row's number belongs to none of them."""
    if rows != items.num_samples:
        raise ValueError(
            f"{items.num_samples} samples in {rows} rows: objectives on a transformer's states compare whole rows, and "
            "these hold several documents; do not pack"
        )


def seen_positions(attention: Attention, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which key each query sees, and which pairs are of two positions that are no padding: [B, 1, L, L] both."""
    rows, length = attention.query.shape[0], attention.query.shape[-2]
    real = torch.ones(rows, length, dtype=torch.bool, device=attention.query.device) if mask is None else mask.bool()
    seen = real[:, None, None, :].expand(-1, 1, length, -1)
    if attention.mask is not None:
        given: Any = attention.mask
        open_ = given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2
        seen = seen & open_[:, :1]
    return seen, real[:, None, None, :] & real[:, None, :, None]


def over_positions(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each row's values [B, L] over its positions that are no padding, [B]; of none, 0."""
    if mask is None:
        return values.mean(-1)
    weight = mask.to(values.dtype)
    # A padded position's value may be anything, also infinite: it is left out, not multiplied by 0.
    return values.masked_fill(~mask.bool(), 0.0).sum(-1) / weight.sum(-1).clamp(min=1)
