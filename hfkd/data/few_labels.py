"""A training set of which few rows keep their label: the others, of label -100, learn from a teacher alone."""

import numpy as np
from datasets import Dataset

from hfkd.data.used_columns import LABELS
from hfkd.utils.targets import IGNORED


def few_labels(dataset: Dataset, labelled: int, seed: int = 0) -> Dataset:
    """`dataset`, whose rows all stay, with the labels of `labelled` of them; -100 in place of the others.

    As many of each class as can be: the rows are taken class by class in turn, in an order drawn from `seed`. Give it a
    dataset before its transform. Raises ValueError for more rows than there are, or none.
    """
    column = next((name for name in LABELS if name in dataset.column_names), None)
    if column is None:
        raise ValueError(
            f"the dataset has the columns {dataset.column_names}: labels are read from one of {list(LABELS)}"
        )
    if not 1 <= labelled <= len(dataset):
        raise ValueError(f"labelled={labelled} of {len(dataset)} rows: keep the labels of at least one, at most of all")
    labels = np.asarray(dataset.with_format("numpy")[column][:])
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many rows of its class come before a row
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        turn[rows] = np.arange(len(rows))
    kept = order[np.argsort(turn[order], kind="stable")][:labelled]
    few = np.full_like(labels, IGNORED)
    few[kept] = labels[kept]
    feature = dataset.features[column]
    return dataset.remove_columns(column).add_column(column, few, feature=feature).select_columns(dataset.column_names)
