"""Long-tailed training sets, made from balanced ones by leaving images out.

N images, C classes.
"""

import numpy as np
from datasets import Dataset

from hfkd.data.columns import num_labels


def class_counts(largest: int, classes: int, imbalance_factor: float) -> list[int]:
    """n_c = int(n_max f^(c / (C - 1))) for class ids c = 0 .. C - 1: from n_max down to n_max f."""
    if not 0 < imbalance_factor <= 1:
        raise ValueError(
            f"imbalance_factor={imbalance_factor} must be in (0, 1], as it is the size of the smallest class divided "
            "by that of the largest"
        )
    counts = [int(largest * imbalance_factor ** (c / max(classes - 1, 1))) for c in range(classes)]
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance_factor={imbalance_factor} leaves none of {largest} images in the last class: set it above "
            f"{1 / largest:g}"
        )
    return counts


def long_tail(dataset: Dataset, imbalance_factor: float = 0.5, seed: int = 0) -> Dataset:
    """CIFAR-100-LT and similar sets (Cui et al., CVPR 2019; Cao et al., LDAM, NeurIPS 2019), by `class_counts`.

    n_max = N // C: 500 on CIFAR-100, so that f = 0.5 keeps 36,029 images, 0.1 19,573, 0.02 12,608 and 0.01 10,847.
    The images are selected at random by `seed`; they keep their order and their `index`, so that an image has the same
    views as in the full dataset. LDAM's selection differs, but not its counts. The test set stays balanced. Raises
    ValueError for a factor outside (0, 1], and for a class with fewer images than it should keep.
    """
    labels = np.asarray(dataset.with_format("numpy")["labels"][:])
    classes = num_labels(dataset)
    counts = class_counts(len(labels) // classes, classes, imbalance_factor)
    generator = np.random.default_rng(seed)
    kept = []
    for label, count in enumerate(counts):
        rows = np.flatnonzero(labels == label)
        if len(rows) < count:
            raise ValueError(f"class {label} has {len(rows)} images but should keep {count}: pass a balanced dataset")
        kept.append(generator.permutation(rows)[:count])
    return dataset.select(np.sort(np.concatenate(kept)))
