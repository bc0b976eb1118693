"""Sources of logits for a chunked loss: they compute the logits of some items, and propagate their gradients.

N items, n items in a chunk, H hidden size, C classes or vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hfkd.losses.functional import upcast
from hfkd.losses.heads import Head


class Source(ABC):
    """One network's logits of N items, computed in parts. inputs: the tensors that receive gradients."""

    inputs: list[Any]

    @property
    @abstractmethod
    def num_classes(self) -> int: ...

    @abstractmethod
    def __call__(self, rows: slice) -> Tensor:
        """The logits of some items [n, C] before rescaling, which the caller may overwrite."""

    @abstractmethod
    def with_backward(self, rows: slice, sums: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], None]]:
        """These logits, and a function that takes their gradient [n, C] and adds the inputs' gradients to `sums`."""

    def rescale(self, logits: Tensor) -> Tensor:
        """The logits that the network would return, from logits before rescaling, in float32 or wider."""
        return upcast(logits)


class HeadSource(Source):
    """The logits of an output head on hidden states [N, H]."""

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
