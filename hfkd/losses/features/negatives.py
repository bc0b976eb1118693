"""Other images for each image, drawn from (seed, step, image): no generator, no host, the same on any number of ranks.

B images, K negatives, N training images.
"""

import torch
from torch import Tensor

MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # those of splitmix64, as signed 64-bit integers
STRIDE = -0x61C8864680B583EB  # 2^64 over the golden ratio


class Negatives:
    """Draws among the N training images: any but the image itself, or given the labels [N] those of other classes.

    Raises ValueError where there are none.
    """

    def __init__(self, num_rows: int, labels: Tensor | None = None) -> None:
        self.num_rows = num_rows
        # Rows class by class; of each row, where its class begins in that order, and how many it has. Without labels a
        # row is a class of its own.
        classes = torch.arange(num_rows) if labels is None else labels.long().cpu()
        counts = classes.bincount()
        self.order = classes.argsort(stable=True)
        self.first, self.size = (counts.cumsum(0) - counts)[classes], counts[classes]
        if bool((self.size == num_rows).any()):
            raise ValueError("there are no negatives: all training rows are of one class, or there is only one row")

    def __call__(self, seed: int, step: int, index: Tensor, count: int) -> Tensor:
        """[B] -> [B, count], with replacement."""
        if self.order.device != index.device:
            self.order, self.first, self.size = (x.to(index.device) for x in (self.order, self.first, self.size))
        first, size = self.first[index].unsqueeze(1), self.size[index].unsqueeze(1)  # [B, 1]
        place = hashed(seed, step, index, count) % (self.num_rows - size)
        return self.order[place + size * (place >= first)]  # past the image's own class


def hashed(seed: int, step: int, index: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 2^62): [B] -> [B, count], by two rounds of splitmix64's mixing."""
    k = torch.arange(count, device=index.device)
    x = _mixed(_mixed(index * STRIDE + _signed(seed * 0x9E3779B97F4A7C15 + step)).unsqueeze(1) + k * STRIDE)
    return x & (2**62 - 1)


def _mixed(x: Tensor) -> Tensor:
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        x = (x ^ _right(x, shift)) * multiplier
    return x ^ _right(x, 31)


def _right(x: Tensor, shift: int) -> Tensor:
    """A shift that fills up with zeros; torch's fills up with the sign."""
    return (x >> shift) & (2 ** (64 - shift) - 1)


def _signed(number: int) -> int:
    """The 64-bit integer with the same bits."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number
