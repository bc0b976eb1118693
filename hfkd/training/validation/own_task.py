"""Checks that a custom task counts what it makes of a batch: the loss is divided by these counts."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hfkd.losses.items import Items
from hfkd.tasks.base import Task


def check_own_task(task: Task, batch: Mapping[str, Any], student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError if a custom task's items on the first rows do not fit together, or are not what it counts."""
    if type(task).__module__.partition(".")[0] == "hfkd":
        return
    classes = min(student.shape[-1], teacher.shape[-1]) if task.vocabulary else None
    items = task.items(batch, student[..., :classes].cpu(), teacher[..., :classes].cpu())
    _check_sizes(type(task).__name__, items)
    counted = {
        "count": (task.count(batch), items.samples_with_items if task.by_share else len(items)),
        "count_samples": (task.count_samples(batch), items.samples_with_items),
    }
    if not task.by_share:
        counted["count_labels"] = task.count_labels(batch), items.num_labels
    for method, (said, there) in counted.items():
        if float(said) != float(there):
            raise ValueError(
                f"{type(task).__name__}.{method} returns {float(said):g} for the first rows, for which items() has "
                f"{float(there):g}: the loss is divided by it, so return the number that items() has for a batch"
            )


def _check_sizes(name: str, items: Items) -> None:
    """Raise ValueError for numbers of logits and labels, or for samples, that do not fit the number of items."""
    sizes = {"logits of the student": items.student.size, "logits of the teacher": items.teacher.size}
    if items.labels is not None and items.tokens is None:
        sizes["labels"] = len(items.labels)
    for what, size in sizes.items():
        if size != len(items):
            raise ValueError(f"{name}.items has {size} {what} for {len(items)} items: give one to each item")
    first, last = (int(items.sample.min()), int(items.sample.max())) if len(items) else (0, 0)
    if len(items) and not 0 <= first <= last < items.num_samples:
        raise ValueError(
            f"{name}.items has sample numbers from {first} to {last} with num_samples={items.num_samples}: number the "
            "samples from 0"
        )
