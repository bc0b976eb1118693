"""What an objective learns about the networks when the trainer is built: `Objective.build(context)`.

S samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from hfkd.utils.feature_keys import Layer, feature_key, feature_keys


class StageSequence(Protocol):
    """A network's stages in order, `stages[k]` from the output of stage k - 1 (0: from images), and its head."""

    @property
    def stages(self) -> tuple[Callable[[Tensor], Tensor], ...]: ...
    @property
    def head(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def last(self) -> int: ...


@dataclass(frozen=True)
class NetworkContext:
    """One network, and the layers that the objectives read of it.

    shapes: of each feature, without the batch dimension: (C, H, W) of a map, (L, H) of a transformer's states.
    modules: the module that each feature is the output of (the input of, where its key ends in ":in").
    network: the bare network.
    groups: what keys for several layers stand for: {"1:": ("1", "2", "3")}. Shapes and modules have these keys.
    class_order: class i of the data is the network's class `class_order[i]`; None: each is the same.
    stages: what runs its stages one by one (`models/running.py`); None where nobody knows them as a sequence.
    """

    shapes: Mapping[str, tuple[int, ...]]
    modules: Mapping[str, nn.Module]
    network: nn.Module
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    class_order: tuple[int, ...] | None = None
    stages: StageSequence | None = None

    def keys(self, layers: Layer | tuple[Layer, ...]) -> tuple[str, ...]:
        """The keys of these layers, each of one feature: "1:" becomes "1", "2", "3"."""
        return tuple(one for key in feature_keys(layers) for one in self.groups.get(key, (key,)))

    def shape(self, layer: Layer) -> tuple[int, ...]:
        return self.shapes[feature_key(layer)]


@dataclass(frozen=True)
class BuildContext:
    """What an objective may know before training, the same on every rank.

    num_rows: of the training set; None for a stream. labels: those of its rows [num_rows], where they can be had
    without reading the rows. seed: what random parts are drawn from.
    scan: `scan(visit)` calls `visit(teacher)` with the teacher's `Outputs`, features among them, for each batch of the
    training rows in order, without gradient. It is a whole pass: call it only if you must.
    """

    student: NetworkContext
    teacher: NetworkContext
    num_classes: int
    num_rows: int | None
    labels: Tensor | None
    scan: Callable[[Callable[[Any], None]], None]
    seed: int

    def pairs(
        self, student: Layer | tuple[Layer, ...], teacher: Layer | tuple[Layer, ...]
    ) -> tuple[tuple[str, str], ...]:
        """The student's layers, each with the teacher's layer in the same place: (student's key, teacher's key).

        Raises ValueError where one has more than the other.
        """
        mine, theirs = self.student.keys(student), self.teacher.keys(teacher)
        if len(mine) != len(theirs):
            raise ValueError(
                f"the student's layers are {list(mine)} and the teacher's {list(theirs)}: they are compared one by "
                "one; name as many of each"
            )
        return tuple(zip(mine, theirs, strict=True))
