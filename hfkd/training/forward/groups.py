"""Forward passes for two tokenizers, with logits for each network's target tokens only.

B rows, n target tokens of a network, V its vocabulary, H its hidden size.
"""

from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from hfkd.losses.chunked_groups import ChunkedGroupLoss
from hfkd.losses.counts import Counts
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.outputs import Outputs
from hfkd.models.calling import output_head
from hfkd.models.target_logits import outputs_at_targets
from hfkd.tasks.two_tokenizers import TwoTokenizerLM
from hfkd.teachers.base import Teacher
from hfkd.training.forward.dense import ChunkedForward
from hfkd.training.forward.micro_batch import MicroBatch, Step
from hfkd.training.forward.target_tokens import TargetForward
from hfkd.utils.finite import output_sums
from hfkd.utils.targets import Targets


class GroupForward(TargetForward):
    """`TargetForward` for a teacher with its own tokenizer; items are groups of tokens (`TwoTokenizerLM`)."""

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        inputs, task = batch.inputs, cast(TwoTokenizerLM, self.task)
        read = task.for_teacher(inputs)
        targets, its = task.targets(inputs), task.targets(read)
        forward = partial(self.call.output, student, inputs)
        output, logits = outputs_at_targets(student, forward, targets, None, self.heads_on_targets)
        assert teacher is not None
        taught, _ = teacher.at_targets(read, its, None, self.heads_on_targets)
        items = batch.placed(task.of_targets(inputs, Outputs(logits), taught, batch.progress))
        if self.watch is not None:
            self.watch.outputs(
                row_sums(logits, targets),
                row_sums(taught.logits, its),
                torch.arange(items.num_samples, device=logits.device),
            )
        items = replace(items, rest=self.call.added_loss(output))
        return *self.loss(items, batch.num_items), self.loss.counted(items)


class ChunkedGroupForward(ChunkedForward):
    """`ChunkedForward` for a teacher with its own tokenizer: both heads are applied to chunks of groups."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, task: TwoTokenizerLM, loss: DistillationLoss, chunk_size: int
    ) -> None:
        if task.pairing.late:
            raise ValueError(
                "position='at' reads each token's logits at the next position, which may be in another chunk: "
                "set loss_chunk_size to 0, or leave position out"
            )
        super().__init__(student, teacher, task, loss, chunk_size)
        self.over_groups = ChunkedGroupLoss(loss, chunk_size, self.rescalings)

    def __call__(self, student: nn.Module, teacher: Teacher | None, batch: MicroBatch) -> Step:
        inputs, task = batch.inputs, cast(TwoTokenizerLM, self.task)
        read = task.for_teacher(inputs)
        targets, its = task.targets(inputs), task.targets(read)
        output = self.call.hidden_output(student, inputs)
        assert teacher is not None
        taught, teacher_head = teacher.hidden(read)
        mine, said = targets.pick(output.hidden_states[-1]), its.pick(taught)
        if self.watch is not None:
            rows = torch.arange(targets.shape[0], device=mine.device)
            self.watch.outputs(row_sums(mine, targets), row_sums(said, its), rows)
        hidden = batch.placed(task.hidden_groups(inputs, mine, said, batch.progress))
        hidden = replace(hidden, rest=self.call.added_loss(output))
        with self.autocast():
            loss, parts = self.over_groups(hidden, output_head(student), teacher_head, batch.num_items)
        return loss, parts, Counts(len(targets), len(hidden.groups.row))


def row_sums(logits: Tensor, targets: Targets) -> Tensor:
    """[n, V] or [n, H] -> [B, 1]: NaN or infinite if any value of the row is."""
    sums = output_sums(logits)  # in float16 finite logits of a large vocabulary would add up to infinity
    return sums.new_zeros(targets.shape[0]).index_add(0, targets.row, sums).unsqueeze(-1)
