"""Where a loss over chunks gets the logits of its items from: a few at a time forward, and their gradients back.

N items, n items of a chunk, H hidden size, C classes or vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hfkd.losses.functional import upcast
from hfkd.losses.heads import Head


class Source(ABC):
    """One network's logits of N items, never all at once. inputs: the tensors that their gradient reaches."""

    inputs: list[Any]

    @property
    @abstractmethod
    def num_classes(self) -> int: ...

    @abstractmethod
    def __call__(self, rows: slice) -> Tensor:
        """The logits of some items [n, C] before rescaling, the caller's to overwrite."""

    @abstractmethod
    def with_backward(self, rows: slice, sums: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Those logits, and what adds their gradient [n, C], once it is known, to the `sums` of the inputs."""

    def rescale(self, logits: Tensor) -> Tensor:
        """Some logits as the network gives them, in float32 or wider."""
        return upcast(logits)


class HeadSource(Source):
    """An output head on the hidden states [N, H] that it reads."""

    def __init__(self, hidden: Tensor, head: Head) -> None:
        self.hidden, self.head = hidden, head
        self.inputs = [hidden, *head.parameters]

    @property
    def num_classes(self) -> int:
        return self.head.num_classes(self.hidden)

    def __call__(self, rows: slice) -> Tensor:
        return self.head(self.hidden[rows])

    def with_backward(self, rows: slice, sums: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], None]]:
        of_hidden, *of_parameters = sums
        logits, backward = self.head.with_backward(self.hidden[rows], of_parameters)

        def add(gradient: Tensor) -> None:
            of_hidden[rows] = backward(gradient)

        return logits, add

    def rescale(self, logits: Tensor) -> Tensor:
        return self.head.rescale(logits)
