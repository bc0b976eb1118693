"""The inputs of one forward and backward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from hfkd.losses.chunked_groups import HiddenGroups
from hfkd.losses.counts import Counts, Number
from hfkd.losses.items import HiddenItems, Items, index_of_samples

Step = tuple[Tensor, dict[str, Tensor], Counts]  # the loss, its parts, and how many items these are means over
AnyItems = TypeVar("AnyItems", Items, HiddenItems, HiddenGroups)


@dataclass(frozen=True)
class MicroBatch:
    """num_items: of the whole optimizer step, over ranks and micro-batches; None: those of this batch.

    progress: epochs done so far, fractional; None on a stream of unknown length. seed, step: see `Items`.
    """

    inputs: Mapping[str, Any]
    num_items: Counts | Number | None = None
    progress: float | None = 0.0
    seed: int = 0
    step: int = 0

    def placed(self, items: AnyItems) -> AnyItems:
        """The items with the dataset rows that they are of, and the run's seed and step."""
        index = index_of_samples(self.inputs.get("index"), items)
        return replace(items, index=index, seed=self.seed, step=self.step)
