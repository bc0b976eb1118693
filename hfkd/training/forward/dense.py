"""Forward passes from a batch to the loss: with whole logits, or from hidden states over chunks of items.

B rows, L length, V vocabulary, H hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from hfkd.losses.chunked import ChunkedLoss
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items, token_hidden
from hfkd.models.calling import Call, logits_of, output_head
from hfkd.models.feature_capture import LOGITS, read_within
from hfkd.models.peers import taught_by_the_others
from hfkd.tasks.base import Task
from hfkd.tasks.causal_lm import CausalLM
from hfkd.teachers import Teacher
from hfkd.training.forward.features import InnerFeatures
from hfkd.training.forward.head_proof import rescaling_of
from hfkd.training.forward.micro_batch import MicroBatch, Step
from hfkd.training.nonfinite import NonFiniteWatch


@dataclass
class DenseForward:
    """Loss on both networks' whole logits. `num_classes` cuts padded vocabularies to the common size (None: no cut)."""

    call: Call
    task: Task
    loss: DistillationLoss
    num_classes: int | None = None
    watch: NonFiniteWatch | None = None
    inner: InnerFeatures = field(default_factory=InnerFeatures)

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        asked = teacher is not None and bool(self.loss.kd_weight)
        items = self.watched(self.items(student, teacher, batch), asked)
        return *self.loss(items, batch.num_items), self.loss.counted(items)

    def items(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Items:
        """The items of a batch, from the outputs of both networks."""
        inputs = batch.inputs
        output, mine = self.inner.of_student(lambda: self.student_output(student, inputs))
        logits = logits_of(output)[..., : self.num_classes]
        inputs = self.task.after_student(inputs, output)
        taught, its = self.of_teacher(logits, teacher, inputs)
        items = batch.placed(self.task.items(inputs, logits, taught, batch.progress))
        items = self.inner.joined(items, inputs, (logits_of(output), mine), (taught, its))
        return replace(items, rest=self.task.added_loss(self.call, output, inputs))

    def student_output(self, student: nn.Module, inputs: Mapping[str, Any]) -> Any:
        besides = self.task.given_besides(self.call, inputs) if self.loss.ce_weight else {}
        return self.call.output(student, inputs, **besides)

    def watched(self, items: Items, asked: bool) -> Items:
        """Return `items` after showing them to the watch; `asked`: whether the teacher was run."""
        if self.watch is not None:
            self.watch.outputs(items.student.logits, items.teacher.logits if asked else None, items.rows[0])
        return items

    def of_teacher(
        self, logits: Tensor, teacher: Teacher | None, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """The teacher's logits and features. Without a distillation term the teacher does not run."""
        if teacher is None or not self.loss.kd_weight:
            return logits.detach(), {}
        return self.inner.of_teacher(
            lambda: teacher(each=True, **self.task.for_teacher(inputs))[..., : self.num_classes]
        )


@dataclass
class MutualForward(DenseForward):
    """Forward pass of `Peers`: each student is taught by the others."""

    peers: int = 2

    def of_teacher(
        self, logits: Tensor, teacher: Teacher | None, inputs: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        return taught_by_the_others(logits, self.peers), {}


class ChunkedForward:
    """Applies each network's head to its last hidden states in chunks of tokens: the logits [N, V] never exist whole.

    Terms on inner layers, with a value for each sample, are computed once for all tokens, outside of the chunks. Built
    from the unwrapped networks. Raises ValueError for a network whose forward cannot leave out the logits, or whose
    logits are not its head applied to the last hidden state and rescaled (`Rescaling`), and for a layer at its head.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        task: Task,
        loss: DistillationLoss,
        chunk_size: int,
        num_classes: int | None = None,
    ) -> None:
        self.call, self.task, self.loss = Call.of(student), task, loss
        if LOGITS in loss.requirements.features:
            raise ValueError(
                f"{loss.objective!r} reads the networks' whole logits, which loss_chunk_size does not compute: "
                "set it to 0, or choose inner layers"
            )
        refuse_layers_at_head("student", student, loss.requirements.student)
        if teacher is not None:
            refuse_layers_at_head("teacher", teacher, loss.requirements.teacher)
        rescaling = rescaling_of(student)
        self.rescalings = rescaling, rescaling if teacher is None else rescaling_of(teacher)
        self.chunked = ChunkedLoss(loss, chunk_size, num_classes, self.rescalings)
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext  # the heads run outside of forward
        self.watch: NonFiniteWatch | None = None
        self.inner = InnerFeatures()

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        inputs = batch.inputs
        output, mine = self.inner.of_student(lambda: self.call.hidden_output(student, inputs))
        hidden, head = output.hidden_states[-1], output_head(student)
        taught, teacher_head = hidden.detach(), head
        its: dict[str, Any] = {}
        asked = teacher if self.loss.kd_weight else None
        read = inputs if asked is None else self.task.for_teacher(inputs)
        if asked is not None:
            (taught, teacher_head), its = self.inner.of_teacher(lambda: asked.hidden(read))
        known = {name: inputs[name] for name in CausalLM.known if name in inputs}
        there = None if read is inputs else self.task.targets(read)
        items = token_hidden(hidden, taught, inputs["labels"], progress=batch.progress, of_teacher=there, **known)
        items = replace(batch.placed(items), rest=self.call.added_loss(output))
        items = self.inner.beside(items, inputs, (hidden, mine), (taught, its))
        if self.watch is not None:
            assert items.row is not None
            self.watch.outputs(items.student, items.teacher if asked else None, items.row)
        with self.autocast():
            return *self.chunked(items, head, teacher_head, batch.num_items), self.loss.counted(items)


def refuse_layers_at_head(role: str, network: nn.Module, keys: Sequence[str]) -> None:
    """Raise ValueError for a feature read at the output head, which runs for one position of each row here."""
    found = read_within(network, keys, output_head(network))
    if found:
        raise ValueError(
            f"layer {found[0]!r} of the {role} is part of its output head, which loss_chunk_size does not apply "
            "to whole rows: set it to 0, or choose an earlier layer, such as -1 or the path of the last norm"
        )
