"""What an objective is told about the networks when the trainer is built: `Objective.build(context)`.

S samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from hfkd.utils.feature_keys import Layer, feature_key, feature_keys


class StageSequence(Protocol):
    """A network's stages in order and its head; `stages[k]` maps the output of stage k - 1 (k = 0: the images)."""

    @property
    def stages(self) -> tuple[Callable[[Tensor], Tensor], ...]: ...
    @property
    def head(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def last(self) -> int: ...


@dataclass(frozen=True)
class NetworkContext:
    """One network, and those of its layers that the objectives read.

    shapes: the shape of each feature without the batch dimension: (C, H, W) of a map, (L, H) of a transformer's states.
    modules: the module whose output each feature is (whose input, where its key ends in ":in").
    network: the bare network.
    groups: the keys that a key for several layers stands for: {"1:": ("1", "2", "3")}. `shapes` and `modules` have the
    single keys.
    class_order: class i of the data is the network's class `class_order[i]`; None: the order is the same.
    in_decoder: those keys that are layers of the decoder of an encoder-decoder.
    stages: runs the network's stages one by one (`models/running.py`); None if they are not known as a sequence.
    """

    shapes: Mapping[str, tuple[int, ...]]
    modules: Mapping[str, nn.Module]
    network: nn.Module
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    class_order: tuple[int, ...] | None = None
    stages: StageSequence | None = None
    in_decoder: frozenset[str] = frozenset()

    def keys(self, layers: Layer | tuple[Layer, ...]) -> tuple[str, ...]:
        """The single keys of these layers: "1:" becomes "1", "2", "3"."""
        return tuple(one for key in feature_keys(layers) for one in self.groups.get(key, (key,)))

    def shape(self, layer: Layer) -> tuple[int, ...]:
        return self.shapes[feature_key(layer)]


@dataclass(frozen=True)
class BuildContext:
    """What an objective is given before training, the same on every rank.

    num_rows: the length of the training set; None for a stream. labels: the labels of its rows [num_rows]; None if they
    are not available without reading the rows. seed: the seed for random initialisation.
    scan: `scan(visit)` calls `visit(teacher)` with the teacher's `Outputs`, features among them, for each batch of the
    training rows in order, without gradient. This is a full pass over the training set: call it only if it is needed.
    index: the numbers by which `Items.index` names the rows, in their order [num_rows], for an objective that requires
    them: those of a part of a dataset, or of a shuffled one. None if they are 0 to num_rows - 1.
    """

    student: NetworkContext
    teacher: NetworkContext
    num_classes: int
    num_rows: int | None
    labels: Tensor | None
    scan: Callable[[Callable[[Any], None]], None]
    seed: int
    index: Tensor | None = None

    def pairs(
        self, student: Layer | tuple[Layer, ...], teacher: Layer | tuple[Layer, ...]
    ) -> tuple[tuple[str, str], ...]:
        """Each of the student's layers with the teacher's layer in the same position: (student's key, teacher's key).

        Raises ValueError if their numbers differ.
        """
        mine, theirs = self.student.keys(student), self.teacher.keys(teacher)
        if len(mine) != len(theirs):
            raise ValueError(
                f"the student's layers are {list(mine)} and the teacher's {list(theirs)}: they are compared one by "
                "one; name the same number of layers for both"
            )
        return tuple(zip(mine, theirs, strict=True))
