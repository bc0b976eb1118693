"""Forward pass for language models, with logits for the target tokens only.

B rows, L length, N target tokens, V vocabulary, H hidden size.
"""

from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import target_items
from hfkd.losses.outputs import Outputs
from hfkd.models.calling import Call, logits_of
from hfkd.models.target_logits import outputs_at_targets
from hfkd.tasks.base import Task
from hfkd.teachers.base import Teacher
from hfkd.training.forward.features import InnerFeatures
from hfkd.training.forward.micro_batch import MicroBatch, Step
from hfkd.training.nonfinite import NonFiniteWatch


@dataclass
class TargetForward:
    """`DenseForward` for tokens that skips prompt and padding positions in the output heads: the same loss, faster.

    On instruction data most positions are not targets, and in a small model the head is most of the work. It hooks into
    the networks' own forward, so that wrappers and operations on the logits stay as they are. Works with stored
    teachers.
    """

    call: Call
    task: Task
    loss: DistillationLoss
    num_classes: int | None = None
    heads_on_targets: bool = True  # False: select afterwards; compiled networks ignore later hooks
    watch: NonFiniteWatch | None = None
    inner: InnerFeatures = field(default_factory=InnerFeatures)

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        inputs = batch.inputs
        targets = self.task.targets(inputs)
        assert targets is not None
        forward, how = partial(self.call.output, student, inputs), (self.num_classes, self.heads_on_targets)
        run = partial(outputs_at_targets, student, forward, targets, *how)
        (output, logits), mine = self.inner.of_student(run)
        asked = teacher if self.loss.kd_weight else None
        said: tuple[Outputs, Tensor | None] = (Outputs(logits.detach()), None)
        its: dict[str, Tensor] = {}
        if asked is not None:
            read = self.task.for_teacher(inputs)
            there = targets if read is inputs else self.task.targets(read)
            assert there is not None
            said, its = self.inner.of_teacher(lambda: asked.at_targets(read, there, *how))
        taught, whole = said
        items = batch.placed(target_items(Outputs(logits), taught, targets, batch.progress))
        if whole is not None:
            items = self.inner.joined(items, inputs, (logits_of(output), mine), (whole, its))
        if self.watch is not None:
            self.watch.outputs(logits, None if whole is None else taught.logits, targets.row)
        items = replace(items, rest=self.call.added_loss(output))
        return *self.loss(items, batch.num_items), self.loss.counted(items)
