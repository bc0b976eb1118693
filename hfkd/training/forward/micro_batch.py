"""The inputs of one forward and backward pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfkd.losses.counts import Counts, Number

Step = tuple[Tensor, dict[str, Tensor], Counts]  # the loss, its parts, and how many items these are means over


@dataclass(frozen=True)
class MicroBatch:
    """num_items: of the whole optimizer step, over ranks and micro-batches; None: those of this batch.

    progress: epochs done so far, fractional; None on a stream of unknown length.
    """

    inputs: Mapping[str, Any]
    num_items: Counts | Number | None = None
    progress: float | None = 0.0
