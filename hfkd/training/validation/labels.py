"""Labels of every kind that a loss takes, and the refusal of those it would misread.

B rows, L length, C classes.
"""

import logging

import torch
from torch import Tensor

from hfkd.data.labels import check_shares, class_ids
from hfkd.losses.items import TOKENS, ItemRule
from hfkd.utils.targets import HostTargets

logger = logging.getLogger(__name__)


class LabelWatch:
    """Looks at each batch's labels on their way to the loss: `check_labels`, and `check_shares` once in each `epoch`.

    Type and shape are known without waiting for the labels' device, shares are not. In evaluation, without an epoch,
    those of every batch are looked at.
    """

    def __init__(self, rule: ItemRule, classes: int | None) -> None:
        self.rule, self.classes = rule, classes
        self._epoch: int | None = None

    def __call__(self, labels: Tensor, epoch: int | None) -> Tensor:
        """The labels, as the loss takes them."""
        check_labels(labels, self.classes, self.rule)
        if labels.is_floating_point() and (epoch is None or epoch != self._epoch):
            check_shares(labels)
            self._epoch = epoch
        return class_ids(labels)


def check_labels(labels: Tensor, classes: int | None, rule: ItemRule) -> None:
    """Raise ValueError unless these are labels of `rule`'s items, by their type and shape: nothing is read back.

    Tokens: integers [B, L]. Images: integers [B], or floats [B, C] over `classes`, the shares of mixed images.
    """
    shape, kind = tuple(labels.shape), str(labels.dtype).removeprefix("torch.")
    if labels.dtype == torch.bool:
        raise ValueError(f"labels of bool, shape {shape}: make them class ids, by argmax(-1) where they are one-hot")
    if rule is TOKENS:
        if labels.is_floating_point() or labels.ndim != 2:
            raise ValueError(
                f"labels of {kind}, shape {shape}: tokens need integers [batch, length], one label a token"
            )
        return
    if labels.is_floating_point():
        if labels.ndim != 2:
            raise ValueError(
                f"labels of {kind}, shape {shape}: class ids are integers, and floats are shares of mixed images, "
                f"shape [batch, {classes or 'classes'}]; convert class ids with int()"
            )
        if classes is not None and labels.shape[-1] != classes:
            raise ValueError(
                f"mixed labels over {labels.shape[-1]} classes, but the student has {classes}: give both as many"
            )
    elif labels.ndim != 1:
        raise ValueError(
            f"labels of {kind}, shape {shape}: class ids have shape [batch], one number a row; take argmax(-1) of "
            "one-hot ones, and squeeze(-1) away a dimension of 1"
        )


class EmptyRows:
    """Warns, once, of training rows of tokens that have no label to learn: all of them are -100, or none is left.

    Counted on the host, where the batch's targets are known there; else a batch without any is seen by its length.
    """

    def __init__(self, rule: ItemRule) -> None:
        self._done = rule is not TOKENS

    def look(self, labels: Tensor, known: HostTargets | None, num_items: int) -> None:
        if self._done:
            return
        rows, length = labels.shape
        if known is None and labels.device.type == "cpu":
            known = HostTargets.of(labels)
        if known is not None and known.shape == labels.shape and known.position.device.type == "cpu":
            empty = int((torch.bincount(known.position // max(length, 1), minlength=rows) == 0).sum())
        else:
            empty = 0 if num_items else rows
        if empty:
            self._done = True
            logger.warning(
                "%d of %d rows of a batch have no label to learn (all are -100): they train nothing, and a batch of "
                "them has a loss of 0. Prompts that fill max_length leave no response; drop such rows, or raise "
                "max_length. Said once.",
                empty,
                rows,
            )
