"""Checks for datasets without a full batch, and for batches too small for what is compared within them."""

import logging
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.trainer_utils import has_length

from hfkd.arguments import DistillationArguments
from hfkd.data.first_rows import map_style, sets_by_name
from hfkd.data.he_da import original_images
from hfkd.losses.base import requirements_of
from hfkd.losses.distillation import DistillationLoss
from hfkd.models.calling import Call
from hfkd.tasks.base import Task
from hfkd.tasks.proof import untouched
from hfkd.training.forward.he_da import added_images

logger = logging.getLogger(__name__)


def _split_batches(args: DistillationArguments) -> bool:
    """Whether accelerate splits a batch over the processes, instead of giving one to each."""
    return cast(Any, args.accelerator_config).split_batches  # parsed by now, even if it was given as text


def _batches(args: DistillationArguments) -> float:
    """The number of training batches with `max_steps`; infinite without it, as epochs are then complete."""
    return args.max_steps * args.gradient_accumulation_steps if args.max_steps > 0 else math.inf


def _trained(args: DistillationArguments, rows: Any) -> int:
    """The number of rows of an epoch: the training rows, and the images that HE-DA adds to them."""
    added = added_images(args, rows)
    return len(original_images(rows) if added else rows) + sum(added.values())


def refuse_no_batch(args: DistillationArguments, rows: Any) -> None:
    """Raise ValueError if `dataloader_drop_last` drops all rows: there are fewer than in a batch of all processes."""
    if not args.dataloader_drop_last or rows is None or not has_length(rows):
        return
    size, count = args.train_batch_size * (1 if _split_batches(args) else args.world_size), _trained(args, rows)
    if count < size:
        raise ValueError(
            f"dataloader_drop_last=True drops an incomplete last batch, but the {count} rows of train_dataset "
            f"are fewer than one batch of {size}: nothing would be trained on; lower the batch size, or leave "
            "dataloader_drop_last out"
        )


def refuse_uneven_batches(args: DistillationArguments, datasets: Mapping[str, Any]) -> None:
    """Raise ValueError if processes would not have as many batches as each other, or in evaluations as many rows."""
    config: Any = args.accelerator_config
    ranks = args.world_size
    if ranks == 1 or config.even_batches or config.dispatch_batches:
        return
    for name, dataset in datasets.items():
        training = name == "train_dataset"
        if training and (args.dataloader_drop_last or args.train_sampling_strategy == "batch_rebalance"):
            continue
        size = args.train_batch_size if training else args.eval_batch_size
        whole = size if config.split_batches else size * ranks  # a batch of all processes
        for part, rows in sets_by_name(dataset, name).items():
            count = 0 if not map_style(rows) else _trained(args, rows) if training else len(rows)
            rest = count % whole
            if not rest or (training and (rest > whole - whole // ranks or _batches(args) <= count // whole)):
                continue
            raise ValueError(
                f"even_batches=False (accelerator_config) leaves the last batch of the {count} rows of {part} to some "
                f"of the {ranks} processes, and the others would wait for them for ever: leave it out, as rows that "
                "fill up the last batch of an evaluation do not count twice"
                + (", or set dataloader_drop_last=True" if training else "")
            )


def refuse_odd_rest(args: DistillationArguments, datasets: Mapping[str, Any], collate: Any) -> None:
    """Raise ValueError if the collator cannot make a last batch of odd length, such as timm's Mixup.

    Tried on three rows, or one. With several processes the batch is filled up. Otherwise the error would occur at the
    end of an epoch.
    """
    if args.world_size > 1:
        return
    for name, dataset in datasets.items():
        training = name == "train_dataset"
        if training and args.dataloader_drop_last:  # evaluation drops no row
            continue
        size = args.train_batch_size if training else args.eval_batch_size
        remedy = "set dataloader_drop_last=True, or another batch size"
        remedy = remedy if training else "set another per_device_eval_batch_size, or score another number of rows"
        for part, rows in sets_by_name(dataset, name).items():
            count = 0 if not map_style(rows) else _trained(args, rows) if training else len(rows)
            rest = count % size
            if rest % 2 == 0 or (training and _batches(args) < count // size):
                continue
            try:
                collate([rows[i] for i in range(min(rest, 3))])
            except Exception as error:
                raise ValueError(
                    f"the {count} rows of {part} in batches of {size} leave a last batch of {rest} rows, "
                    f"which the data_collator cannot collate ({type(error).__name__}: {error}): {remedy}"
                ) from error


def refuse_single_row(student: nn.Module, call: Call, args: DistillationArguments, rows: Any, collate: Any) -> None:
    """Raise ValueError if an epoch ends with a batch of one row, for which the student's batch norm has no variance.

    Tried on a row, in training mode: feature maps larger than a pixel do have one. Several processes fill up the batch.
    """
    size, count = args.train_batch_size, _trained(args, rows) if map_style(rows) else 0
    single = count % size == 1 and not args.dataloader_drop_last and args.world_size == 1
    if (
        not single
        or _batches(args) <= count // size
        or not any(isinstance(module, _BatchNorm) for module in student.modules())
    ):
        return
    batch = collate([rows[0]])
    try:
        with untouched(student), torch.no_grad():
            student.train()
            call.output(student, {name: v for name, v in batch.items() if name != "labels" or call.takes(name)})
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"{count} rows in batches of {size} leave a last batch of one row, which the student's batch norm "
            f"cannot normalise ({error}): set dataloader_drop_last=True, or another per_device_train_batch_size"
        ) from error


def refuse_few_classes(loss: DistillationLoss, task: Task, classes: int) -> None:
    """Raise ValueError for a slot that has no effect with two classes, between which only one difference exists."""
    classes = classes if task.class_ids else 2  # of a (row, label) pair
    for slot in (*(term.objective for term in loss.terms), loss.weighting) if loss.kd_weight else ():
        needs = requirements_of(slot)
        if needs.relations and not task.class_ids:
            continue  # refused for that, see `refuse_small_batches`
        if classes < (needed := needs.classes):
            raise ValueError(
                f"{slot!r} needs at least {needed} classes, and {task.item} has {classes}: two numbers, centred "
                "and scaled, are the same for all rows but for their order, and have no gradient; choose kd (or "
                "dist(beta=0), or a weighting by raw logits)"
            )


def refuse_small_batches(loss: DistillationLoss, args: DistillationArguments, task: Task) -> None:
    """Raise ValueError if the batch of one process is too small, or unsuitable, for what a slot compares within it.

    For tokens only a warning is logged, since a row may contain several documents. The last batch of an epoch may be
    smaller: a slot then leaves out what it cannot compare.
    """
    if loss.kd_weight and requirements_of(loss.objective).relations and not task.relates:
        raise ValueError(
            f"{loss.objective!r} compares the items of a batch class by class, but the items of {task.name} "
            "belong to unrelated labels: choose an objective without relations, such as kd"
        )
    rows = args.train_batch_size // (args.world_size if _split_batches(args) else 1)
    for slot in (loss.objective, loss.weighting) if loss.kd_weight else ():
        # A row of tokens is one sample and many items, an image is both.
        needs = requirements_of(slot)
        needed = max(needs.items if task.one_item_a_row else 1, needs.samples)
        if rows >= needed:
            continue
        found = (
            f"{slot!r} compares the rows of a batch with each other and needs at least {needed}, but "
            f"per_device_train_batch_size gives it {rows}: raise per_device_train_batch_size (gradient "
            "accumulation does not help), or choose another slot"
        )
        if task.one_item_a_row:
            raise ValueError(found)
        logger.warning("%s. It has an effect only for rows with several documents.", found)
