"""Labels of every kind that a loss takes, and the refusal of those it would misread.

B rows, L length, C classes.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.arguments import DistillationArguments
from hfkd.data.first_rows import map_style
from hfkd.data.labels import class_ids
from hfkd.losses.base import requirements_of
from hfkd.losses.counts import Number
from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.slot_values import is_ours
from hfkd.tasks.base import Task
from hfkd.tasks.tokens import PerToken
from hfkd.training.validation.checked_batches import NOTHING_TO_LEARN
from hfkd.training.validation.networks import stored_labels
from hfkd.utils.targets import IGNORED, HostTargets

logger = logging.getLogger(__name__)


class LabelWatch:
    """Looks at each batch's labels on their way to the loss: their type, and float ones' values once in each `epoch`.

    Type and shape are known without waiting for the labels' device, values are not. In evaluation, without an epoch,
    those of every batch are looked at.
    """

    def __init__(self, task: Task, classes: int | None) -> None:
        self.task, self.classes = task, classes
        self._epoch: int | None = None

    def __call__(self, labels: Tensor, epoch: int | None) -> Tensor:
        """The labels, as the loss takes them."""
        self.task.check_labels(labels, self.classes)
        told = labels.is_floating_point() or not self.task.class_ids
        if told and (epoch is None or epoch != self._epoch):
            self.task.check_values(labels)
            self._epoch = epoch
        return class_ids(labels)


def refuse_unlabelled(loss: DistillationLoss, task: Task, row: Any) -> None:
    """Raise ValueError where training rows, such as `row`, have no labels, and something would read them."""
    if loss.labelled:
        return
    if loss.ce_weight:
        columns = f" (they have {sorted(row)})" if isinstance(row, Mapping) else ""
        raise ValueError(
            f"the training rows have no labels{columns}, and ce_weight={loss.ce_weight:g}: {task.without_labels}"
            + ("; or give ce_weight=0 to learn from the teacher alone" if task.needs_no_labels else "")
        )
    for slot in (loss.objective, loss.temperature, loss.weighting):
        if requirements_of(slot).labels:
            raise ValueError(f"{slot!r} reads labels, and the training rows have none: choose kd, or give them labels")


def why_labelled(loss: DistillationLoss, task: Task, args: DistillationArguments) -> str | None:
    """Why a training row may not have the label -100, and what to do; None: it may, and is distilled without."""
    if not (task.lacks_labels and loss.kd_weight):
        return NOTHING_TO_LEARN
    for slot in (loss.objective, loss.temperature, loss.weighting):
        if requirements_of(slot).labels:
            return f"{slot!r} reads the label; choose kd, or leave the row out"
    if args.he_da == "paper":
        return "he_da='paper' mixes labels; leave it out, or the row"
    return None


def refuse_none_labelled(loss: DistillationLoss, dataset: Any, task: Task) -> None:
    """Raise ValueError where every training row has the label -100, and the cross-entropy is to be learned."""
    stored = stored_labels(dataset, task) if loss.ce_weight and task.lacks_labels else None
    if stored is not None and len(stored) and bool((stored == IGNORED).all()):
        raise ValueError(
            f"no training row has a label (all are {IGNORED}), and ce_weight={loss.ce_weight:g}: give ce_weight=0 to "
            "learn from the teacher alone, or some rows their label"
        )


def complete(dataset: Any, task: Task) -> bool:
    """Whether each training row is known to have a label: a column of them is read, anything else might have -100."""
    stored = stored_labels(dataset, task)
    return not task.lacks_labels or (stored is not None and bool((stored != IGNORED).all()))


def may_be_unlabelled(loss: DistillationLoss, task: Task, dataset: Any) -> bool:
    """Whether `dataset` is a stream, which cannot be looked at, whose labels nothing would read if it had any."""
    slots = (loss.objective, loss.temperature, loss.weighting)
    unread = all(is_ours(slot) and not requirements_of(slot).labels for slot in slots)
    return dataset is not None and not map_style(dataset) and not loss.ce_weight and task.needs_no_labels and unread


def refuse_unlabelled_batch(batch: Mapping[str, Any], loss: DistillationLoss, task: Task) -> None:
    """Raise ValueError where a stream, or a user's own loader, gives a batch without the labels that are learned."""
    if isinstance(batch, Mapping) and batch.get("labels") is None:
        raise ValueError(
            f"a training batch has no labels (it has {sorted(batch)}), and ce_weight={loss.ce_weight:g}: "
            f"{task.without_labels}; or give ce_weight=0, and slots that read none, to learn from the teacher alone"
        )


class EmptyRows:
    """Warns, once, of training rows of tokens that have no label to learn: all of them are -100, or none is left.

    Counted on the host, where the batch's targets are known there; else a batch without any is seen by its length.
    """

    def __init__(self, task: Task) -> None:
        self._done = not isinstance(task, PerToken)
        self._shift = 0 if self._done else task.shift  # type: ignore[attr-defined]

    def look(self, labels: Tensor, known: HostTargets | None, num_items: Number) -> None:
        if self._done:
            return
        rows, length = labels.shape
        if known is None and labels.device.type == "cpu":
            known = HostTargets.of(labels) if self._shift else HostTargets.in_place(labels)
        if known is not None and known.shape == labels.shape and known.position.device.type == "cpu":
            empty = int((torch.bincount(known.position // max(length, 1), minlength=rows) == 0).sum())
        else:
            empty = 0 if num_items else rows
        if empty:
            self._done = True
            logger.warning(
                "%d of %d rows of a batch have no label to learn (all are -100): they train nothing, and a batch of "
                "them has a loss of 0. A prompt that fills max_length leaves no response, and a short text may have no "
                "masked token; drop such rows, or raise max_length. Said once.",
                empty,
                rows,
            )
