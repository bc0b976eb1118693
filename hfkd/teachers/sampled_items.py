"""A few items of each row, spread over them: what a scan keeps of rows that have too many, as images have pixels.

N items, M of them.
"""

import torch
from torch import Tensor

JITTER = 0.6180339887498949  # the golden ratio's fraction, whose multiples are spread evenly over [0, 1)


def per_row(limit: int | None, rows: int) -> int | None:
    """How many items of each of so many rows are kept, that all are about `limit`; None: all of them."""
    return None if limit is None else -(-limit // max(rows, 1))


def spread_items(row: Tensor, num_rows: int, most: int | None) -> Tensor:
    """Which items are kept [M], at most `most` of each row; `row` [N] says which row each is in, in order.

    One in each of `most` equal parts of a row's items, at another place in each: the same on any number of ranks, and
    not in step with a grid's lines.
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
