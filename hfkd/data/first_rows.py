"""The sets of a dataset, and the first rows of one: for checks before training, and for a quick try."""

from collections.abc import Sized
from typing import Any

from datasets import Dataset
from torch.utils.data import IterableDataset

PROBED_ROWS = 2


def map_style(dataset: Any) -> bool:
    """Whether a dataset has rows that can be read by index."""
    return dataset is not None and isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def first_rows(dataset: Any) -> list[Any]:
    """The first two rows of a map-style dataset; none of any other."""
    return [dataset[i] for i in range(min(PROBED_ROWS, len(dataset)))] if map_style(dataset) else []


def at_most(dataset: Dataset, count: int | None) -> Dataset:
    """The first `count` rows of a dataset, or all of them; None: all."""
    return dataset if count is None else dataset.select(range(min(count, len(dataset))))


def sets_by_name(dataset: Any, name: str = "eval_dataset") -> dict[str, Any]:
    """The sets of a dict of several, as Trainer evaluates on; a single one under `name`."""
    return dataset if isinstance(dataset, dict) else {name: dataset}
