"""Returns the student's outputs in training, for subclasses that override `compute_loss`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hfkd.tasks.base import Task
from hfkd.tasks.tokens import PerToken
from hfkd.training.forward.choice import AnyForward
from hfkd.training.forward.dense import ChunkedForward
from hfkd.training.forward.target_tokens import TargetForward


def smoothed(smoother: Any, outputs: Any, labels: Tensor, task: Task) -> Tensor:
    """The loss of a label smoother, called as Trainer does: the mean over the labels of one micro-batch."""
    shifted = {"shift_labels": True} if isinstance(task, PerToken) and task.shift else {}
    return smoother(outputs, labels, num_items_in_batch=None, **shifted)


@contextmanager
def returned_outputs(step: AnyForward, model: nn.Module, wanted: bool) -> Iterator[tuple[AnyForward, list[Any]]]:
    """Context that yields the step to call, and a list that collects what `model` returns; `step` itself if not
    `wanted`.

    Raises ValueError for a loss over chunks, whose logits never exist whole.
    """
    outputs: list[Any] = []
    if not wanted:
        yield step, outputs
        return
    if isinstance(step, ChunkedForward):
        raise ValueError(
            "return_outputs=True in training needs whole logits, which loss_chunk_size does not compute; set it to 0"
        )
    if isinstance(step, TargetForward):
        step = replace(step, heads_on_targets=False)
    hook = model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield step, outputs
    finally:
        hook.remove()
