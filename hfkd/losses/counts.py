"""The counts of a whole optimizer step, over all ranks and accumulated batches, that sums are divided by."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

Number = Tensor | int | float


@dataclass(frozen=True)
class Counts:
    """The denominators of the loss, known before the forward pass. An image counts once, whatever its number of views.

    labels: the cross-entropy is divided by it. items: objectives on items are divided by it. samples: the number of
    samples that have items, by which objectives on samples are divided; None if there is no such objective.
    """

    labels: Number
    items: Number
    samples: Number | None = None

    @classmethod
    def of(cls, given: "Counts | Number | None", labels: Number, items: int, samples: Number) -> "Counts":
        """The counts that a caller gave, completed from those of the batch.

        Counts are returned as they are. A number counts items; if `labels` is a tensor, it is scaled by the batch's
        share of labels. None: the counts of the batch."""
        if isinstance(given, Counts):
            return given
        if given is None:
            return cls(labels, items, samples)
        return cls(given * labels / max(items, 1) if isinstance(labels, Tensor) else given, given)

    def scaled(self, part: int, whole: int) -> "Counts":
        """The counts of `part` of the rows of a batch of `whole` rows."""
        samples = None if self.samples is None else self.samples * part / whole
        return Counts(self.labels * part / whole, self.items * part / whole, samples)


def at_least(count: Any) -> Any:
    """`count`, or 1 if it is 0, so that the loss of a step without items is 0."""
    return count + (count == 0)
