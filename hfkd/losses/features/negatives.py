"""Negatives for each image as a function of (seed, step, image), computed on the device, for any number of ranks.

B images, K negatives, N training images.
"""

import torch
from torch import Tensor

MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # those of splitmix64, as signed 64-bit integers
STRIDE = -0x61C8864680B583EB  # 2^64 over the golden ratio


class Negatives:
    """Draws from the N training images: any but the image itself, or with `labels` [N] those of other classes.

    Raises ValueError if there are no negatives.
    """

    def __init__(self, num_rows: int, labels: Tensor | None = None) -> None:
        self.num_rows = num_rows
        # The rows ordered by class, and for each row the start and the size of its class in that order. Without labels
        # each row is its own class.
        classes = torch.arange(num_rows) if labels is None else labels.long().cpu()
        counts = classes.bincount()
        self.order = classes.argsort(stable=True)
        self.first, self.size = (counts.cumsum(0) - counts)[classes], counts[classes]
        if bool((self.size == num_rows).any()):
            raise ValueError(
                f"there are no negatives, because all {num_rows} training rows have the same class or there is only "
                "one row: use sampling='other_images', or more rows"
            )

    def __call__(self, seed: int, step: int, index: Tensor, count: int) -> Tensor:
        """[B] -> [B, count], with replacement."""
        if self.order.device != index.device:
            self.order, self.first, self.size = (x.to(index.device) for x in (self.order, self.first, self.size))
        first, size = self.first[index].unsqueeze(1), self.size[index].unsqueeze(1)  # [B, 1]
        place = hashed(seed, step, index, count) % (self.num_rows - size)
        return self.order[place + size * (place >= first)]  # skips the image's own class


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
    """A logical right shift; torch's is arithmetic."""
    return (x >> shift) & (2 ** (64 - shift) - 1)


def _signed(number: int) -> int:
    """The signed 64-bit integer with the same bits."""
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number
