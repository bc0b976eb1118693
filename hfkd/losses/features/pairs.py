"""Base classes of objectives that compare layers of the student with layers of the teacher, pair by pair.

S samples.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.base import Requirements
from hfkd.losses.context import BuildContext
from hfkd.losses.features.base import FeatureObjective
from hfkd.losses.items import Items
from hfkd.utils.feature_keys import Layer, LayerMap, Layers, paired_keys


class LayerPairs(FeatureObjective):
    """An objective on the student's `layers` and the teacher's `teacher_layers` (None: the same layers).

    `layers` may be a map, {student layer: teacher layer}.
    single: one layer is compared, not several. maps: the layers must be maps (C, H, W). relational: a value depends on
    the other rows of the batch, which must have at least `rows` rows. A subclass that also reads logits sets
    `signals=False` in its `requirements()`.
    """

    single = False
    maps = False
    relational = False
    rows = 1

    def __init__(self, layers: Layer | Layers | LayerMap, teacher_layers: Layer | Layers | None) -> None:
        super().__init__()
        self.student_keys, self.teacher_keys = paired_keys(layers, teacher_layers)
        self.pairs: tuple[tuple[str, str], ...] | None = None

    def requirements(self) -> Requirements:
        keys = self.student_keys, self.teacher_keys
        return Requirements(*keys, relations=self.relational, samples=self.rows, signals=True)

    def build(self, context: BuildContext) -> None:
        self.pairs = self.paired(context)
        if self.single and len(self.pairs) != 1:
            raise ValueError(
                f"{self!r}: the layer stands for {len(self.pairs)} layers, but one is compared: name one of them"
            )
        if self.maps:
            for mine, theirs in self.pairs:
                self._check_map("student", mine, context.student.shape(mine))
                self._check_map("teacher", theirs, context.teacher.shape(theirs))

    def paired(self, context: BuildContext) -> tuple[tuple[str, str], ...]:
        """The layers that are compared: (student's key, teacher's key)."""
        return context.pairs(self.student_keys, self.teacher_keys)

    def _check_map(self, network: str, key: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise ValueError(
                f"{self!r}: layer {key!r} of the {network} has the shape {shape}, but maps (channels, height, width) "
                "are compared: name a layer of a convolutional network"
            )

    def read(self, items: Items) -> Iterator[tuple[Any, Any]]:
        """The features of each pair of layers: (student's, teacher's)."""
        if self.pairs is None:
            raise ValueError(f"{self!r} is not built: call build(context) first, as the trainer does")
        for mine, theirs in self.pairs:
            yield items.student.features[mine], items.teacher.features[theirs]


class SumOverMaps(LayerPairs):
    """l_s is the sum of `of_maps` over the pairs of maps; no parameters are trained besides the student's."""

    maps = True

    def __init__(self, layers: Layer | Layers | LayerMap = "1:", teacher_layers: Layer | Layers | None = None) -> None:
        super().__init__(layers, teacher_layers)
        self.layers, self.teacher_layers = layers, teacher_layers

    @abstractmethod
    def of_maps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The value of each sample [S] from two maps [S, C, H, W]."""

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        return torch.stack(self.of_layers(items)).sum(0)

    def of_layers(self, items: Items) -> list[Tensor]:
        """The value of each sample at each layer: [S] each."""
        return [self.of_maps(student, teacher) for student, teacher in self.read(items)]
