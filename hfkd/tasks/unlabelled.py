"""Training on rows without labels."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hfkd.data.first_rows import first_rows, map_style
from hfkd.models.calling import bare
from hfkd.tasks.base import Collate, Task


@dataclass
class Unlabelled:
    """A collator that adds placeholder labels to batches without any: they mark the items, and no slot sees them.

    It has the number of classes, not the network, because workers may get it pickled.
    """

    collate: Collate
    task: Task
    classes: int | None

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        if not isinstance(batch.get("labels"), Tensor):
            batch["labels"] = self.task.stand_ins(batch, self.classes)
        return batch


def unlabelled(collate: Collate, task: Task, network: nn.Module) -> Collate:
    """`collate` for rows without labels, on which `network` is trained."""
    inner: Any = bare(network)
    config = getattr(inner, "config", None)
    classes = getattr(inner, "num_classes", None) if config is None else getattr(config, "num_labels", None)
    return task.ready(Unlabelled(collate, task, classes))


def has_labels(dataset: Any, collate: Collate) -> bool:
    """Whether the first rows have labels; assumed for a stream, whose rows can be read only once."""
    return not map_style(dataset) or isinstance(collate(first_rows(dataset)).get("labels"), Tensor)
