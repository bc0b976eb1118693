"""Checks the labels of a run, of every kind that a loss takes.

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
from hfkd.training.validation.label_values import stored_labels
from hfkd.utils.targets import IGNORED, HostTargets

logger = logging.getLogger(__name__)


class LabelWatch:
    """Checks each batch's labels before the loss: type and shape always, values of float labels once per `epoch`.

    Checking values waits for the labels' device. In evaluation, without an epoch, the values of every batch are
    checked.
    """

    def __init__(self, task: Task, classes: int | None) -> None:
        self.task, self.classes = task, classes
        self._epoch: int | None = None

    def __call__(self, labels: Tensor, epoch: int | None) -> Tensor:
        """Check the labels, and return them as the loss expects them."""
        self.task.check_labels(labels, self.classes)
        told = labels.is_floating_point() or not self.task.class_ids
        if told and (epoch is None or epoch != self._epoch):
            self.task.check_values(labels)
            self._epoch = epoch
        return class_ids(labels)


def refuse_unlabelled(loss: DistillationLoss, task: Task, row: Any) -> None:
    """Raise ValueError if training rows, such as `row`, have no labels but some part of the loss reads them."""
    if loss.labelled:
        return
    if loss.ce_weight:
        columns = f" (they have {sorted(row)})" if isinstance(row, Mapping) else ""
        raise ValueError(
            f"the training rows have no labels{columns}, but ce_weight={loss.ce_weight:g} needs them: "
            f"{task.without_labels}"
            + ("; or set ce_weight=0 to learn from the teacher alone" if task.needs_no_labels else "")
        )
    for slot in loss.slots:
        if requirements_of(slot).labels:
            raise ValueError(f"{slot!r} reads labels, but the training rows have none: choose kd, or add labels")


def refuse_smoothing(loss: DistillationLoss, task: Task) -> None:
    """Raise ValueError for label smoothing of labels that are not classes."""
    if loss.label_smoothing and not task.class_ids:
        raise ValueError(
            f"label_smoothing_factor={loss.label_smoothing} needs one class per item, but the labels of "
            f"{task.name} are binary: leave it out, or smooth the labels in the data"
        )


def why_labelled(loss: DistillationLoss, task: Task, args: DistillationArguments) -> str | None:
    """Why a training row may not have the label -100, and the remedy; None: it may, and is only distilled."""
    if not (task.lacks_labels and loss.kd_weight):
        return NOTHING_TO_LEARN
    for slot in loss.slots:
        if requirements_of(slot).labels:
            return f"{slot!r} reads the label; choose kd, or remove the row"
    if args.he_da == "paper":
        return "he_da='paper' mixes labels; leave he_da out, or remove the row"
    return None


def refuse_none_labelled(loss: DistillationLoss, dataset: Any, task: Task) -> None:
    """Raise ValueError if every training row has the label -100 although the loss has a cross-entropy term."""
    stored = stored_labels(dataset, task) if loss.ce_weight and task.lacks_labels else None
    if stored is not None and len(stored) and bool((stored == IGNORED).all()):
        raise ValueError(
            f"no training row has a label (all are {IGNORED}), but ce_weight={loss.ce_weight:g} needs some: set "
            "ce_weight=0 to learn from the teacher alone, or add labels"
        )


def complete(dataset: Any, task: Task) -> bool:
    """Whether every training row is known to have a label, which only a column of labels can show."""
    if not task.lacks_labels:
        return True
    stored = stored_labels(dataset, task)
    return stored is not None and bool((stored != IGNORED).all())


def may_be_unlabelled(loss: DistillationLoss, task: Task, dataset: Any) -> bool:
    """Whether `dataset` is a stream, which cannot be read in advance, and no part of the loss reads its labels."""
    unread = all(is_ours(slot) and not requirements_of(slot).labels for slot in loss.slots)
    return dataset is not None and not map_style(dataset) and not loss.ce_weight and task.needs_no_labels and unread


def refuse_unlabelled_batch(batch: Mapping[str, Any], loss: DistillationLoss, task: Task) -> None:
    """Raise ValueError if a stream, or a user's own loader, yields a batch without the labels that the loss needs."""
    if isinstance(batch, Mapping) and batch.get("labels") is None:
        raise ValueError(
            f"a training batch has no labels (it has {sorted(batch)}), but ce_weight={loss.ce_weight:g} or a slot "
            f"needs them: {task.without_labels}; or set ce_weight=0, and choose slots that read no labels, to "
            "learn from the teacher alone"
        )


class EmptyRows:
    """Warns once if rows of a training batch of tokens have no label: all are -100, or none is left.

    Counted on the host if the batch's targets are known there; otherwise only a batch without any label is noticed.
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
                "%d of %d rows of a batch have no label (all are -100): they do not contribute to training, and "
                "a batch of such rows has a loss of 0. A prompt that fills max_length leaves no room for a "
                "response, and a short text may have no masked token; remove such rows, or raise max_length. "
                "This warning is shown once.",
                empty,
                rows,
            )
