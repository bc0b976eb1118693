"""Checks that labels are those of the networks' classes, on all rows where a column has them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.data.epochs import unchanged_column
from hfkd.data.first_rows import first_rows, map_style, sets_by_name
from hfkd.data.labels import class_ids
from hfkd.tasks.base import Task
from hfkd.training.validation.checked_batches import NOTHING_TO_SCORE
from hfkd.training.validation.datasets import Collate
from hfkd.utils.targets import IGNORED


def check_scored(scored: Any, collate: Collate, classes: int, task: Task) -> None:
    """Check the labels of evaluation sets, whose errors would otherwise show only after training, or never."""
    for part, rows in sets_by_name(scored).items():
        if not map_style(rows) or len(rows) == 0:
            continue
        batch = collate(first_rows(rows))
        if not isinstance(batch.get("labels"), Tensor):
            continue
        try:
            check_label_values(rows, batch, classes, task, NOTHING_TO_SCORE)
        except ValueError as error:
            raise ValueError(f"{part}: {error}") from error


def refuse_no_labels(batch: Mapping[str, Any], task: Task) -> None:
    if not isinstance(batch.get("labels"), Tensor):
        raise ValueError(f"the batch has no tensor of labels: it has {sorted(batch)}; {task.without_labels}")


def check_label_values(dataset: Any, batch: Mapping[str, Any], classes: int, task: Task, no_label: str | None) -> None:
    probed = batch["labels"]
    task.check_labels(probed, classes)
    if probed.is_floating_point() or not task.class_ids:
        task.check_values(probed)
        return
    stored = stored_labels(dataset, task)
    labels = class_ids(probed) if stored is None else stored
    for none in task.ignores:
        labels = labels[labels != none]
    if IGNORED not in task.ignores and bool((labels == IGNORED).any()):
        if no_label:
            raise ValueError(f"a row has the label {IGNORED}, which means no label: {no_label}")
        labels = labels[labels != IGNORED]
    low, high = (int(labels.min()), int(labels.max())) if labels.numel() else (0, 0)
    if low == high == -1:
        raise ValueError(
            "the labels are all -1, as in test splits with hidden labels (such as GLUE's): there is nothing to "
            "compare with; use another split, such as validation"
        )
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels run from {low} to {high}, but the student has {classes} classes (0 to {classes - 1}): "
            "give it more labels, or choose another label column"
        )


def stored_labels(dataset: Any, task: Task) -> Tensor | None:
    """The labels of all rows, if a column has them and batches get it as it is."""
    stored = unchanged_column(dataset, "labels") if task.one_item_a_row else None
    return None if stored is None else torch.as_tensor(stored)
