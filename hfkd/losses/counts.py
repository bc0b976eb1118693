"""How much a whole optimizer step has, over all ranks and accumulated batches: what sums are divided by."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Number = Tensor | int | float


@dataclass(frozen=True)
class Counts:
    """Known before any forward. An image counts once, whatever its views.

    labels: what the cross-entropy is divided by. items: what an objective on items is divided by. samples: what an
    objective on samples is divided by, those that have items; None where none asks for it.
    """

    labels: Number
    items: Number
    samples: Number | None = None

    @classmethod
    def of(cls, given: "Counts | Number | None", labels: Number, items: int, samples: Number) -> "Counts":
        """`given`; a bare number counts items, labelled as often as those at hand (a tensor). None: those at hand."""
        if isinstance(given, Counts):
            return given
        if given is None:
            return cls(labels, items, samples)
        return cls(given * labels / max(items, 1) if isinstance(labels, Tensor) else given, given)

    def scaled(self, part: int, whole: int) -> "Counts":
        """Those of `part` of a batch of `whole` rows."""
        samples = None if self.samples is None else self.samples * part / whole
        return Counts(self.labels * part / whole, self.items * part / whole, samples)


def at_least(count: Any) -> Any:
    """A count to divide by: a step without items gives 0."""
    return count + (count == 0)
