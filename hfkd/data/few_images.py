"""A part of an image classification dataset, for a quick try, and streams of which every part has few classes."""

import logging
from itertools import takewhile
from typing import Any

import numpy as np
from datasets import Dataset

from hfkd.data.columns import label_names
from hfkd.data.first_rows import at_most

logger = logging.getLogger(__name__)
LOOKED_AT = 64  # rows of a stream, which are in the order of their classes by chance only if nearly all are of one


def few_images(dataset: Dataset, count: int | None) -> Dataset:
    """The first `count` rows with their `labels`; of a dataset sorted by class, evenly spaced rows instead.

    A folder of images is read class by class, so that its first rows would be of one class or few. So they are of any
    dataset that has its classes in blocks, which less than half as many neighbours show that differ as of random rows.
    """
    if count is None or count >= len(dataset):
        return dataset
    labels = np.asarray(dataset.with_format("numpy")["labels"][:])
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    in_blocks = np.mean(labels[:-1] != labels[1:]) < (1 - np.sum(shares**2)) / 2
    if in_blocks or np.all(labels[:-1] <= labels[1:]) or np.all(labels[:-1] >= labels[1:]):
        return dataset.select(np.linspace(0, len(dataset), count, endpoint=False).astype(int))
    return at_most(dataset, count)


def warn_of_sorted_stream(rows: Any, parts: dict[str, int]) -> None:
    """Warn of a stream sorted by class, as of a folder of images, of which `parts` (sizes by name) are used at a time.

    Reads its first rows: as many as show that a part of that size does not have all classes.
    """
    classes = len(label_names(rows) or ())
    if classes < 2 or not parts:
        return
    labels = [row["labels"] for row in rows.take(LOOKED_AT)]
    if not labels or None in labels or labels not in (sorted(labels), sorted(labels, reverse=True)):
        return
    most = rows.take(max(parts.values()) // classes + 1)
    in_first = sum(1 for _ in takewhile(lambda row: row["labels"] == labels[0], most))
    for name, size in parts.items():
        if in_first * classes > size:
            logger.warning(
                "%s=%d images of a stream have few of its %d classes, because it is sorted by class (the first %d "
                "images are of class %d): load the data without streaming.",
                name, size, classes, in_first, labels[0],
            )  # fmt: skip
