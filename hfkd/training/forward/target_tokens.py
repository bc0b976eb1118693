"""From a batch of tokens to the loss, with logits for its target tokens alone.

B rows, L length, N target tokens, V vocabulary, H hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from hfkd.losses.counts import Counts, Number
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items, Outputs
from hfkd.losses.topk import topk_items
from hfkd.models.calling import Call, logits_of, output_head
from hfkd.tasks.base import Task
from hfkd.teachers import FrozenTeacher
from hfkd.teachers.token_cache.teacher import CachedTextTeacher
from hfkd.training.forward.dense import Step
from hfkd.training.forward.features import InnerFeatures
from hfkd.training.nonfinite import NonFiniteWatch
from hfkd.utils.targets import Targets


@dataclass
class TargetForward:
    """`DenseForward` for tokens, whose output heads see no prompt's or padding's position: the same loss, sooner.

    On instruction data most positions are no targets, and in a small model the head is most of the work. Works inside
    of the networks' own forward, whatever wraps them and whatever they do to their logits. `CachedTextTeacher` too.
    """

    call: Call
    task: Task
    loss: DistillationLoss
    num_classes: int | None = None
    heads_on_targets: bool = True  # a compiled network knows no hooks that come later: False picks afterwards
    watch: NonFiniteWatch | None = None
    inner: InnerFeatures = field(default_factory=InnerFeatures)

    def __call__(
        self,
        student: nn.Module,
        teacher: FrozenTeacher | CachedTextTeacher | None,
        inputs: Mapping[str, Any],
        num_items: Counts | Number | None,
        progress: float | None,
    ) -> Step:
        targets, live = self.task.targets(inputs), None
        assert targets is not None
        run = partial(self._output, student, partial(self.call.output, student, inputs), targets)
        (output, logits), mine = self.inner.of_student(run)
        if self.loss.kd_weight and isinstance(teacher, CachedTextTeacher):
            items: Items = topk_items(logits, teacher.outputs(inputs), targets, progress)
        else:
            taught = logits.detach()
            if self.loss.kd_weight and teacher is not None:
                network: Any = teacher.model
                run = partial(self._output, network, partial(teacher, **inputs), targets)
                (whole, live), its = self.inner.of_teacher(run)
                taught = live
            outputs = Outputs(logits), Outputs(taught)
            samples = targets.sample, targets.num_samples
            items = Items(*outputs, targets.labels, *samples, progress, row=targets.row, num_rows=targets.shape[0])
            if self.inner.wanted:
                items = self.inner.joined(items, inputs, (logits_of(output), mine), (logits_of(whole), its))
        if self.watch is not None:
            self.watch.outputs(logits, live, targets.row)
        items = replace(items, rest=self.call.added_loss(output))
        return *self.loss(items, num_items), len(items)

    def _output(self, network: nn.Module, forward: Callable[[], Any], targets: Targets) -> tuple[Any, Tensor]:
        """What `forward` returns, and its logits [N, V] at the targets."""
        head = output_head(network) if self.heads_on_targets else None
        if head is None:
            output = forward()
            logits = targets.pick(logits_of(output))
        else:
            output, logits = target_logits(head, forward, targets)
        return output, logits[:, : self.num_classes]


def target_logits(head: nn.Module, forward: Callable[[], Any], targets: Targets) -> tuple[Any, Tensor]:
    """What `forward` returns and its logits [N, V] at the targets, by handing the `head` [1, N, H] for [B, L, H].

    A network that does not call that head on whole hidden states gives all logits, picked afterwards.
    """
    picked = False

    def only_targets(head: nn.Module, states: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal picked
        if not states or not isinstance(states[0], Tensor) or states[0].shape[:2] != targets.shape:
            return None
        picked = True
        return targets.pick(states[0]).unsqueeze(0), *states[1:]

    hook = head.register_forward_pre_hook(only_targets)
    try:
        output = forward()
    finally:
        hook.remove()
    logits = logits_of(output)
    return output, logits.squeeze(0) if picked else targets.pick(logits)
