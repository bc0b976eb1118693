"""Labels of images as a loss takes them: class ids, or the shares of the classes that were mixed.

B images, C classes.
"""

from typing import Any

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-2  # of a mixed label's shares in bfloat16


def class_ids(labels: Tensor) -> Tensor:
    """Integers of any width as int64, which losses index with; others as they are."""
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    return labels.long() if whole else labels


def refuse_words(column: str, value: Any) -> None:
    """Raise ValueError for a label that is a word."""
    if isinstance(value, str):
        raise ValueError(
            f"the labels are words, such as {value!r}: make them class ids with dataset.class_encode_column("
            f"{column!r}), which keeps their names"
        )


def check_shares(labels: Tensor) -> None:
    """Raise ValueError unless each row of mixed labels [B, C] is a distribution. Waits for the labels' device."""
    sums = labels.float().sum(-1)
    wrong = ~((sums - 1).abs() <= SUM_TOLERANCE) | (labels < 0).any(-1)
    if not wrong.any():
        return
    row = int(wrong.nonzero()[0])
    raise ValueError(
        f"float labels that are no shares of classes: row {row} of the batch sums to {sums[row]:.3g}, its least is "
        f"{labels[row].min():.3g}; MixUp's and CutMix's are 0 or more and sum to 1. For several labels at once "
        "(multi-hot) choose task='multi_label_classification'; a regression gives no probabilities to distil"
    )
