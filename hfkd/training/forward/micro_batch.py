"""The inputs of one forward and backward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from hfkd.losses.chunked_groups import HiddenGroups
from hfkd.losses.counts import Counts, Number
from hfkd.losses.items import HiddenItems, Items

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
        index = self.inputs.get("index")
        known = _of_samples(index, items) if isinstance(index, Tensor) and index.ndim == 1 and len(index) else None
        return replace(items, index=known, seed=self.seed, step=self.step)


def _of_samples(index: Tensor, items: Items | HiddenItems | HiddenGroups) -> Tensor | None:
    """The index of each sample [S] from that of each row [B]."""
    row = None if isinstance(items, HiddenGroups) else items.row
    if row is None or items.num_samples == len(index):  # a row, or a view of one
        times, rest = divmod(items.num_samples, len(index))
        return None if rest else index.repeat(times)
    assert not isinstance(items, HiddenGroups)
    return index.new_full((items.num_samples,), -1).scatter(0, items.sample, index[row])  # documents
