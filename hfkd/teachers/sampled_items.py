"""Selects evenly spread items of each row, for scans of rows with very many items, such as pixels.

N items, M of them.
"""

import torch
from torch import Tensor

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
