"""The first rows of a dataset, for checks before training."""

from collections.abc import Sized
from typing import Any

from torch.utils.data import IterableDataset

PROBED_ROWS = 2


def map_style(dataset: Any) -> bool:
    """Whether a dataset has rows that can be read by index."""
    return dataset is not None and isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def first_rows(dataset: Any) -> list[Any]:
    """The first two rows of a map-style dataset; none of any other."""
    return [dataset[i] for i in range(min(PROBED_ROWS, len(dataset)))] if map_style(dataset) else []
