"""Columns of a dataset by their usual names, and the class names of a label column."""

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset

# In the order of the search.
LABEL_COLUMNS = ("fine_label", "label", "labels", "cls", "class")


def find_column(dataset: Dataset, given: str | None, usual: tuple[str, ...], argument: str) -> str:
    if given is not None and given not in dataset.column_names:
        raise ValueError(f"{argument}={given!r} is not in the dataset: its columns are {dataset.column_names}")
    found = given or next((c for c in usual if c in dataset.column_names), None)
    if found is None:
        raise ValueError(
            f"no {argument.removesuffix('_column')} column among {dataset.column_names}: none is named "
            f"{' or '.join(usual)}; pass {argument}="
        )
    return found


def label_names(dataset: Any) -> list[str] | None:
    """The class names of a dataset's column `labels`; None if it has none."""
    feature = dataset.features["labels"]
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def num_labels(dataset: Any) -> int:
    """The number of classes, by names or the highest label. Raises ValueError for a stream without class names."""
    names = label_names(dataset)
    if not names and not isinstance(dataset, Dataset):
        raise ValueError(
            "this stream has no class names, so that its classes cannot be counted: load the data without streaming"
        )
    return len(names) if names else int(whole_column(dataset, "labels").max()) + 1


def whole_column(dataset: Dataset, name: str) -> np.ndarray:
    """A stored column, as `with_format("numpy")` gives it.

    Of integers without a copy of each row, which `datasets` makes: it takes ten seconds for a million shuffled rows.
    """
    stored, order = dataset.data.table[name], dataset._indices
    if not pa.types.is_integer(stored.type) or stored.null_count:
        return np.asarray(dataset.with_format("numpy")[name][:])
    values = stored.to_numpy()
    return (values if order is None else values[order.table.column(0).to_numpy()]).astype(np.int64)
