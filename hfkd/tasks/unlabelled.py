"""Training on rows without labels."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hfkd.data.first_rows import first_rows, map_style
from hfkd.tasks.base import Collate, Task


@dataclass
class Unlabelled:
    """A collator that adds placeholder labels to batches without any: they mark the items, and no slot sees them."""

    collate: Collate
    task: Task
    network: nn.Module

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        if not isinstance(batch.get("labels"), Tensor):
            batch["labels"] = self.task.stand_ins(batch, self.network)
        return batch


def unlabelled(collate: Collate, task: Task, network: nn.Module) -> Collate:
    """`collate` for rows without labels."""
    return task.ready(Unlabelled(collate, task, network))


def has_labels(dataset: Any, collate: Collate) -> bool:
    """Whether the first rows have labels; assumed for a stream, whose rows can be read only once."""
    return not map_style(dataset) or isinstance(collate(first_rows(dataset)).get("labels"), Tensor)
