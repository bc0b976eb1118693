"""Thresholds that leave a share of the training set's energies outside.

Each lies midway between two neighbouring energies and never on one: where it is an item's own energy, the last bit of
that energy decides, and a stored teacher decides otherwise than a live one. Items that share the energy at the boundary
are not parted, and stay inside: a side never has more items than asked.
"""

import logging

import torch
from torch import Tensor

from hfkd.utils.numbers import floor_of_share

logger = logging.getLogger(__name__)

FEW = 0.9  # of what was asked for: with less than that it is said


def ordered(owner: str, energies: Tensor) -> Tensor:
    """The energies [N], ascending. ValueError where they are not finite, or all the same."""
    if not torch.isfinite(energies).all():
        raise ValueError(f"{owner}: the energies to fit hold NaN or infinity: the teacher's logits are broken")
    result = energies.sort().values
    if len(result) > 1 and result[0] == result[-1]:
        raise ValueError(
            f"{owner}: all {len(result)} training items have the energy {result[0].item():g}, so there are none of "
            "low or high energy: check the teacher's checkpoint, or choose a temperature that is a number"
        )
    return result


def count_of_share(owner: str, length: int, share: float) -> int:
    """floor(N r). ValueError where it is 0."""
    count = floor_of_share(length, share)
    if count < 1:
        raise ValueError(
            f"{owner}: a share of {share:g} of {length} training items is less than one: use more data or a larger "
            "share"
        )
    return count


def below(energies: Tensor, count: int) -> float:
    """t such that E < t for the `count` lowest of the ascending energies [N], except those equal to the next one.

    Where that leaves none, t is the lowest energy itself.
    """
    after = energies[count]
    first = int(torch.searchsorted(energies, after))  # where those equal to it begin
    if first == 0:
        return after.item()
    before = energies[first - 1]
    middle = before + (after - before) / 2
    return (middle if before < middle else after).item()  # neighbours without a number between them


def above(energies: Tensor, count: int) -> float:
    """`below` for the other end: E > t for the `count` highest."""
    return -below(-energies.flip(0), count)


def check_parts(owner: str, parts: dict[str, tuple[int, int]], length: int) -> None:
    """Say where equal energies leave a part of the N items less than asked for: `parts` has (items, asked) by name.

    ValueError where a part is left empty.
    """
    for name, (items, asked) in parts.items():
        if items == 0:
            raise ValueError(
                f"{owner}: of {length} training items {asked} should be {name}, and so many have the very same energy "
                "there that none can be told apart: check the teacher's checkpoint, or choose a larger share"
            )
        if items < FEW * asked:
            logger.warning(
                "%s: %d of %d training items are %s, not %d: the others have the very same energy as the next one, and "
                "items of equal energy get one temperature.",
                owner,
                items,
                length,
                name,
                asked,
            )
