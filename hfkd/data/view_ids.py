"""Numbers that are a function of (seed, epoch, index), the same in any worker and on any number of ranks.

B rows of a batch.
"""

import torch
from torch import Tensor

SEEDS = 1 << 62  # as many views as there are seeds of a generator


def view_ids(index: Tensor, seed: int, epoch: Tensor | int, num_views: int, stream: int = 0) -> Tensor:
    """A view for each image, uniform over `num_views`, from a counter-based hash of (seed, epoch, index). [B] int64.

    Each `stream` gives independent numbers.
    """
    key = _mix(_mix(torch.as_tensor(seed)) ^ _mix(torch.as_tensor(epoch) + 0x5851F42D4C957F2D)) ^ _mix(index + 1)
    key = _mix(key + stream) if stream else key
    return _shift_right(_mix(key), 1) % num_views


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose multiplication wraps like that of unsigned integers."""
    x = x.to(torch.int64) - 7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
