"""What a user's own slots give for the first rows."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.slot_values import check_slots
from hfkd.tasks.base import Task

SlotCheck = Callable[[Mapping[str, Any], Tensor, Tensor], None]  # a batch, and both networks' logits for it


def slot_check(loss: DistillationLoss, task: Task, num_classes: int | None) -> SlotCheck:
    """`check_slots` of a batch and what student and teacher gave for it."""

    def check(batch: Mapping[str, Any], student: Tensor, teacher: Tensor) -> None:
        if loss.own_slots:
            student, teacher = (z[..., :num_classes].cpu() for z in (student, teacher))
            check_slots(loss, task.items(batch, student, teacher))

    return check
