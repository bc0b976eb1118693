"""The first rows of a dataset, to be looked at before training."""

from collections.abc import Sized
from typing import Any

from torch.utils.data import IterableDataset

PROBED_ROWS = 2


def map_style(dataset: Any) -> bool:
    """Whether its rows can be looked at without spending them."""
    return dataset is not None and isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def first_rows(dataset: Any) -> list[Any]:
    """Two of them; none of a dataset that is read in order only."""
    return [dataset[i] for i in range(min(PROBED_ROWS, len(dataset)))] if map_style(dataset) else []
