"""Thresholds with a given share of the training set's energies outside.

Each lies midway between two neighbouring energies: if it were equal to the energy of an item, rounding would decide the
side of that item, and a cached teacher could decide differently from a live one. Items with the same energy at the
boundary stay together, and inside: a side never has more items than requested.
"""

import logging

import torch
from torch import Tensor

from hfkd.utils.numbers import floor_of_share

logger = logging.getLogger(__name__)

FEW = 0.9  # a warning is logged if a part has less than this share of the requested items


def ordered(owner: str, energies: Tensor) -> Tensor:
    """The energies [N], ascending. Raises ValueError if they are not finite, or all equal."""
    if not torch.isfinite(energies).all():
        raise ValueError(
            f"{owner}: the teacher's energies on the training set contain NaN or infinity: check the teacher's "
            "checkpoint"
        )
    result = energies.sort().values
    if len(result) > 1 and result[0] == result[-1]:
        raise ValueError(
            f"{owner}: all {len(result)} training items have the energy {result[0].item():g}, so that none has a low "
            "or high energy: check the teacher's checkpoint, or set the temperature to a number"
        )
    return result


def count_of_share(owner: str, length: int, share: float) -> int:
    """floor(N r). Raises ValueError if it is 0."""
    count = floor_of_share(length, share)
    if count < 1:
        raise ValueError(
            f"{owner}: a share of {share:g} of {length} training items is less than one: use more data or a larger "
            "share"
        )
    return count


def below(energies: Tensor, count: int) -> float:
    """t such that E < t for the `count` lowest of the ascending energies [N], except those equal to the next one.

    If no item is left, t is the lowest energy.
    """
    after = energies[count]
    first = int(torch.searchsorted(energies, after))  # the first energy equal to `after`
    if first == 0:
        return after.item()
    before = energies[first - 1]
    middle = before + (after - before) / 2
    return (middle if before < middle else after).item()  # equal if there is no float between the two


def above(energies: Tensor, count: int) -> float:
    """`below` for the other end: E > t for the `count` highest."""
    return -below(-energies.flip(0), count)


def check_parts(owner: str, parts: dict[str, tuple[int, int]], length: int) -> None:
    """Warn if a part has fewer items than requested, because of equal energies.

    parts: (items, requested) by name, of N items in all. Raises ValueError if a part is empty.
    """
    for name, (items, asked) in parts.items():
        if items == 0:
            raise ValueError(
                f"{owner}: {asked} of {length} training items should be {name}, but there is none, because too many "
                "items have the same energy there: check the teacher's checkpoint, or choose a larger share"
            )
        if items < FEW * asked:
            logger.warning(
                "%s: %d of %d training items are %s instead of %d, because the others have the same energy as the "
                "next item, and items of equal energy get the same temperature.",
                owner,
                items,
                length,
                name,
                asked,
            )
