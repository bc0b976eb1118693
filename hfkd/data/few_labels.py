"""Training sets with few labels: the other rows have the label -100, and are only distilled."""

import numpy as np
from datasets import Dataset

from hfkd.data.used_columns import LABELS, label_column
from hfkd.utils.targets import IGNORED


def few_labels(dataset: Dataset, labelled: int, seed: int = 0) -> Dataset:
    """`dataset` with the labels of `labelled` of its rows, and -100 for the others.

    Classes are balanced as far as possible: rows are taken from all classes in turn, in a random order from `seed`.
    Rows that have no label already are not counted. Apply it before the dataset's transform. Raises ValueError if
    `labelled` is less than 1, or more than there are rows with a label.
    """
    column = label_column(dataset.column_names)
    if column is None:
        raise ValueError(
            f"the dataset has the columns {dataset.column_names}, but none of {list(LABELS)}: rename the column of "
            "the labels"
        )
    labels = np.asarray(dataset.with_format("numpy")[column][:])
    known = labels != IGNORED
    if not 1 <= labelled <= known.sum():
        raise ValueError(f"labelled={labelled} must be from 1 to the {known.sum()} rows of the dataset with a label")
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[known[order]]
    turn = np.empty(len(labels), dtype=np.int64)  # the number of rows of the same class before each row
    for label in np.unique(labels[known]):
        rows = order[labels[order] == label]
        turn[rows] = np.arange(len(rows))
    kept = order[np.argsort(turn[order], kind="stable")][:labelled]
    few = np.full_like(labels, IGNORED)
    few[kept] = labels[kept]
    feature = dataset.features[column]
    return dataset.remove_columns(column).add_column(column, few, feature=feature).select_columns(dataset.column_names)
