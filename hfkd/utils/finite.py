"""Sums that are finite if all values of a row are, to find non-finite rows later without a synchronisation.

B rows of a batch, N items, C classes, vocabulary or hidden size.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def output_sums(outputs: Tensor) -> Tensor:
    """[N, C] -> [N]: the sum over each row, non-finite if any value is."""
    return outputs.detach().flatten(1).sum(-1, dtype=torch.float32)


def input_sums(inputs: Mapping[str, Any]) -> Tensor | None:
    """The sum over all float inputs of each row, without labels and masks: [B]; None if there are no such inputs."""
    found = [
        value.sum(tuple(range(1, value.ndim)), dtype=torch.float32)
        for name, value in inputs.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim > 1
        and not name.endswith(("labels", "mask"))
    ]
    return sum(found[1:], found[0]) if found and len({len(sums) for sums in found}) == 1 else None


def broken_rows(inputs: Mapping[str, Any]) -> list[int]:
    """The rows of a batch with NaN or infinity in their inputs; synchronises with the device."""
    sums = input_sums(inputs)
    return [] if sums is None else (~torch.isfinite(sums)).nonzero().flatten().tolist()
