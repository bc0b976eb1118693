"""Checks of image labels: class ids, or the shares of mixed classes.

B images, C classes.
"""

from typing import Any

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-2  # for the shares of mixed labels in bfloat16


def class_ids(labels: Tensor) -> Tensor:
    """Integer labels as int64, which losses need; others unchanged."""
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    return labels.long() if whole else labels


def refuse_words(column: str, value: Any) -> None:
    """Raise ValueError for a label that is a string."""
    if isinstance(value, str):
        raise ValueError(
            f"the labels are strings, such as {value!r}: convert them to class ids with "
            f"dataset.class_encode_column({column!r}), which keeps their names"
        )


def check_shares(labels: Tensor) -> None:
    """Raise ValueError unless each row of mixed labels [B, C] is a distribution. Synchronises with the device."""
    sums = labels.float().sum(-1)
    wrong = ~((sums - 1).abs() <= SUM_TOLERANCE) | (labels < 0).any(-1)
    if not wrong.any():
        return
    row = int(wrong.nonzero()[0])
    raise ValueError(
        f"float labels must be shares of classes, which are 0 or more and sum to 1 (MixUp, CutMix), but row {row} of "
        f"the batch sums to {sums[row]:.3g}, with a minimum of {labels[row].min():.3g}. For several labels per row "
        "(multi-hot) set task='multi_label_classification'; regression is not supported"
    )
