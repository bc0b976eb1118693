"""Comparisons of a transformer's hidden states: pairing of layers, and means over a row's positions.

B rows, L positions, H features.
"""

from collections.abc import Iterator
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
    """`LayerPairs` of transformers; without `teacher_layers`, every r-th layer of the teacher.

    r = L_t / L_s: the student's layer i is compared with the teacher's layer r i, so the last with the last. With
    `teacher_layers="uniform"` the first is compared with the first, the last with the last, and the others are spread
    evenly, as `prune_layers` keeps them; this allows depths that are not multiples. Embeddings are compared with
    embeddings.
    """

    def __init__(self, layers: Layer | Layers | LayerMap, teacher_layers: Layer | Layers | None) -> None:
        self.uniform = teacher_layers == UNIFORM
        super().__init__(layers, None if self.uniform and not isinstance(layers, dict) else teacher_layers)
        self.in_decoder: tuple[bool, ...] = ()  # whether each pair is, once built
        onwards = [stages_of(key) for key in self.student_keys]
        if self.uniform and not (len(onwards) == 1 and onwards[0] and onwards[0][2] and onwards[0][1] in (0, 1)):
            raise ValueError(
                f"{type(self).__name__}: teacher_layers='uniform' spreads all blocks of the student over those of the "
                f"teacher, but layers={layers!r} names some of them: pass layers='1:' ('0:' with the embeddings), or "
                "a map such as layers={1: 1, 2: 5}"
            )

    def build(self, context: BuildContext) -> None:
        super().build(context)
        self.in_decoder = tuple(mine in context.student.in_decoder for mine, _ in self.pairs or ())

    def states(self, items: Items) -> Iterator[tuple[Any, Any, Tensor | None]]:
        """What `read` gives for each pair of layers, and the positions that are not padding [B, L]."""
        for (student, teacher), inside in zip(self.read(items), self.in_decoder, strict=True):
            yield student, teacher, items.decoder_mask if inside else items.mask

    def paired(self, context: BuildContext) -> tuple[tuple[str, str], ...]:
        mine, theirs = context.student.keys(self.student_keys), context.teacher.keys(self.teacher_keys)
        if self.student_keys == self.teacher_keys and len(mine) != len(theirs):
            return tuple(zip(mine, self._spread(mine, theirs), strict=True))
        return super().paired(context)

    def _spread(self, mine: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
        """Every r-th of the teacher's layers, up to its last; embeddings (layer 0) are paired with embeddings."""
        start = int(mine[0] == theirs[0] == "0")
        few, many = len(mine) - start, len(theirs) - start
        if self.uniform and 0 < few <= many:
            return theirs[:start] + tuple(theirs[start + k] for k in evenly_spread(few, many))
        if not few or many % few:
            raise ValueError(
                f"{self!r}: the teacher's {many} layers are not a multiple of the student's {few}: name {few} of the "
                "teacher's layers as teacher_layers"
                + ("" if self.uniform else ", or give teacher_layers='uniform'" if few < many else "")
            )
        return theirs[:start] + theirs[start + many // few - 1 :: many // few]

    def widths(self, context: BuildContext) -> tuple[int, int]:
        """The widths of the student's and the teacher's states. Raises ValueError if a network has several."""
        found = []
        for name, network, keys in zip(
            ("student", "teacher"), (context.student, context.teacher), zip(*self.pairs or (), strict=True), strict=True
        ):
            shapes = {key: network.shape(key) for key in keys}
            if any(len(shape) != 2 for shape in shapes.values()) or len({shape[-1] for shape in shapes.values()}) != 1:
                raise ValueError(
                    f"{self!r}: the layers of the {name} have the shapes {shapes}, but states (positions, width) of a "
                    "single width are compared: name blocks of a transformer"
                )
            found.append(next(iter(shapes.values()))[-1])
        return found[0], found[1]

    def projected(self, context: BuildContext, wanted: bool) -> nn.Module:
        """A linear layer from the student's width to the teacher's; the identity if none is `wanted`.

        Without a projection, raises ValueError unless both networks have the same width.
        """
        if wanted:
            return nn.Linear(*self.widths(context))
        self.same_width(context)
        return nn.Identity()

    def same_width(self, context: BuildContext) -> None:
        """Raises ValueError unless student and teacher have states of the same width."""
        student, teacher = self.widths(context)
        if student != teacher:
            raise ValueError(
                f"{self!r}: the student's states have width {student} and the teacher's {teacher}, but are compared "
                "without a projection: use hidden_mse or hidden_cosine with projection=True, or a student of the "
                "teacher's width"
            )


def a_row_a_sample(items: Items, rows: int) -> None:
    """Raise ValueError if rows hold several samples: the value of a row would belong to none of them."""
    if rows != items.num_samples:
        raise ValueError(
            f"{items.num_samples} samples in {rows} rows: objectives on a transformer's states compare whole rows, "
            "but these rows hold several documents; switch packing off"
        )


def seen_positions(attention: Attention, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which keys each query attends to, and which pairs of positions are without padding: [B, 1, L, L] both."""
    rows, length = attention.query.shape[0], attention.query.shape[-2]
    refuse_other_positions(length, mask)
    real = torch.ones(rows, length, dtype=torch.bool, device=attention.query.device) if mask is None else mask.bool()
    seen = real[:, None, None, :].expand(-1, 1, length, -1)
    if attention.mask is not None:
        given: Any = attention.mask
        open_ = given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2
        seen = seen & open_[:, :1]
    return seen, real[:, None, None, :] & real[:, None, :, None]


def over_positions(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of each row's values [B, L] over its positions that are not padding, [B]; 0 if all are padding."""
    if mask is None:
        return values.mean(-1)
    refuse_other_positions(values.shape[-1], mask)
    weight = mask.to(values.dtype)
    # The values at padding may be infinite or NaN, so they are masked instead of multiplied by 0.
    return values.masked_fill(~mask.bool(), 0.0).sum(-1) / weight.sum(-1).clamp(min=1)


def refuse_other_positions(length: int, mask: Tensor | None) -> None:
    """Raise ValueError for a layer of other positions than those that the mask [B, L] is of."""
    if mask is not None and mask.shape[-1] != length:
        raise ValueError(
            f"a layer has {length} positions, and the batch's attention_mask {mask.shape[-1]}, so that it is not known "
            "which of them are padding: name a layer over the tokens of the attention_mask, or, if none are padding, "
            "use hidden_mse(..., count_padding=True)"
        )
