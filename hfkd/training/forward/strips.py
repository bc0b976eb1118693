"""Forward pass for semantic segmentation whose full-size logits never exist all at once.

B images, C classes, h and w of a network's maps.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from hfkd.losses.base import requirements_of
from hfkd.losses.chunked import unserved
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.strips import StripLoss
from hfkd.models.calling import logits_of
from hfkd.teachers.base import Teacher
from hfkd.training.forward.dense import DenseForward
from hfkd.training.forward.micro_batch import MicroBatch, Step


@dataclass
class StripForward(DenseForward):
    """`DenseForward` that resizes the logits and computes the loss one strip at a time: the same loss, with less
    memory.

    The networks' outputs, at their own resolution, do exist whole.
    """

    def __post_init__(self) -> None:
        self.strips = StripLoss(self.loss)

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        output, mine = self.inner.of_student(lambda: self.student_output(student, batch.inputs))
        maps = logits_of(output)
        taught, its = self.of_teacher(maps, teacher, batch.inputs)
        found = self.task.map_items(batch.inputs, maps, taught, batch.progress)
        if self.watch is not None:
            asked = teacher is not None and bool(self.loss.kd_weight)
            rows = torch.arange(len(maps), device=maps.device)
            self.watch.outputs(maps.flatten(1), taught.flatten(1) if asked else None, rows)
        known = replace(batch.placed(found.known), rest=self.task.added_loss(self.call, output, batch.inputs))
        known = self.inner.beside(known, batch.inputs, (maps, mine), (taught, its))
        return *self.strips(found._replace(known=known), batch.num_items), self.loss.counted(known)


def by_strips(loss: DistillationLoss) -> bool:
    """Whether the loss can be computed in strips.

    Its terms must be of single items or of inner layers, and its slots must need only energies and entropies of logits.
    """
    slots = (loss.temperature, loss.weighting)
    return unserved(loss) is None and (not loss.kd_weight or all(requirements_of(slot).signals for slot in slots))
