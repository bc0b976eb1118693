"""Selects evenly spread items, for scans of rows with very many items, such as pixels, and of very many rows.

N items, M of them.
"""

import torch
from torch import Tensor

MOST = 1 << 24  # items of a scan: quantiles of more would take gigabytes on each rank, and no other value
JITTER = 0.6180339887498949  # the golden ratio's fraction, whose multiples are spread evenly over [0, 1)


def per_row(limit: int | None, rows: int) -> int | None:
    """Number of items to keep of each of `rows` rows, for about `limit` items in all; None: all."""
    return None if limit is None else -(-limit // max(rows, 1))


def spread_items(row: Tensor, num_rows: int, most: int | None) -> Tensor:
    """Indices [M] of the items to keep, at most `most` of each row; `row` [N]: the row of each item, in order.

    One from each of `most` equal parts of a row's items, at varying places: the same on any number of ranks, and not
    aligned with the lines of an image.
    """
    counts = torch.bincount(row, minlength=num_rows)
    if most is None or int(counts.max() if num_rows else 0) <= most:
        return torch.arange(len(row), device=row.device)
    kept, start = [], 0
    for count in counts.tolist():
        part = torch.arange(min(most, count) + 1) * count // max(min(most, count), 1)
        jitter = torch.arange(len(part) - 1, dtype=torch.float64) * JITTER % 1
        kept.append(start + part[:-1] + (jitter * part.diff()).long())
        start += count
    return torch.cat(kept).to(row.device)


class EvenItems:
    """All items of a scan in their order, [N, ...]; of more than `MOST` every second, fourth, ... one.

    Each has the same chance, whatever the length of its row, and they are the same on any number of ranks.
    """

    def __init__(self) -> None:
        self.seen, self.step = 0, 1
        self._parts: list[Tensor] = []
        self._kept = 0

    def add(self, items: Tensor) -> None:
        part = items[-self.seen % self.step :: self.step]
        self._parts.append(part.clone() if self.step > 1 else part)  # not a view, which would keep all
        self.seen, self._kept = self.seen + len(items), self._kept + len(part)
        while self._kept > MOST:
            joined = self.joined()[::2].clone()
            self._parts, self._kept, self.step = [joined], len(joined), 2 * self.step

    def joined(self) -> Tensor:
        return torch.cat(self._parts)
