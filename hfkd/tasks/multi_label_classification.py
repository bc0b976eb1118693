"""Any number of binary labels per row: `problem_type="multi_label_classification"`.

B rows, C labels, N = B C items.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from hfkd.data.collate import ImageCollator
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.models.calling import Call, bare
from hfkd.tasks.base import Batch, Collate, register_task
from hfkd.tasks.rows import PerRow, rows_of
from hfkd.utils.devices import device_of


@register_task("multi_label_classification")
class MultiLabelClassification(PerRow):
    """An item is a (row, label) pair with the two logits (0, z_bc); a sample is a row.

    So the cross-entropy is the binary one with logits (mean over pairs, as in transformers), KD is Bernoulli KD
    (sigmoid(z / T)), and a row's mean energy is its joint energy, -T sum_c log(1 + exp(z_c / T)), over C.
    """

    pipeline_tag = "text-classification"
    item = "a (row, label) pair"
    problem_type = "multi_label_classification"
    one_item_a_row = False
    class_ids = False
    lacks_labels = False
    relates = False
    scored_by = None

    def collator(self, call: Call, processing_class: Any, columns: Collection[str]) -> Collate:
        collate = super().collator(call, processing_class, columns)
        if isinstance(collate, ImageCollator):
            collate.shares = False
        return collate

    def count(self, batch: Batch) -> Tensor | int:
        return batch["labels"].numel()

    def items(self, batch: Batch, student: Tensor, teacher: Tensor, progress: float | None = 0.0) -> Items:
        rows, classes = student.shape
        views = rows // max(len(batch["labels"]), 1)  # all views of an image have its labels
        labels = batch["labels"].to(student.dtype if student.dtype.itemsize > 2 else torch.float32)
        labels = labels.repeat(views, 1).flatten()  # [V B C]
        sample = torch.arange(rows, device=student.device).repeat_interleave(classes)
        several = teacher if teacher.ndim > student.ndim else teacher[None]
        teachers = tuple(Outputs(_pairs(one)) for one in several)
        mean = teachers[0] if len(teachers) == 1 else Outputs(_pairs(teacher.mean(0)))
        shares = torch.stack([1 - labels, labels], dim=-1)  # [N, 2]
        return Items(
            Outputs(_pairs(student)),
            mean,
            shares,
            sample=sample,
            num_samples=rows,
            progress=progress,
            teachers=teachers if len(teachers) > 1 else (),
        )

    def stand_ins(self, batch: Batch, classes: int | None) -> Tensor:
        if classes is None:
            raise ValueError(
                "the rows have no labels, and the student's number of labels is unknown: add labels to the rows"
            )
        return torch.zeros(rows_of(batch), classes)

    def check_logits(self, logits: Tensor) -> None:
        if logits.ndim != 2:
            raise ValueError(
                f"the student's logits have shape {tuple(logits.shape)}, but {self.name} needs [batch, labels]: "
                "choose another model or task"
            )

    def check_labels(self, labels: Tensor, classes: int | None) -> None:
        """Labels must be [B, C], of any type, with values from 0 to 1."""
        if labels.ndim != 2 or (classes is not None and labels.shape[-1] != classes):
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}: {self.name} needs a 0 or a 1 for each of the "
                f"{classes or ''} labels, shape [batch, {classes or 'labels'}]"
            )

    def check_values(self, labels: Tensor) -> None:
        wrong = ~((labels >= 0) & (labels <= 1)).all(-1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"labels of row {row} of the batch must be from 0 to 1: {labels[row].tolist()[:8]}")

    def sure_labels(self, network: nn.Module, batch: Batch) -> Tensor:
        given = batch.get("labels")
        if given is not None and given.ndim == 2:
            return given.float()
        config: Any = bare(network).config
        count, device = rows_of(batch), device_of(network)
        return (torch.arange(count * config.num_labels, device=device) % 2).view(count, -1).float()


def _pairs(logits: Tensor) -> Tensor:
    """[B, C] -> [B C, 2], the logits of the negative and the positive class."""
    flat = logits.flatten()
    return torch.stack([torch.zeros_like(flat), flat], dim=-1)
