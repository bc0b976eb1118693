"""Checks the results of user-defined slots on the first rows."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items
from hfkd.losses.objective_values import check_objectives, reads_logits_alone
from hfkd.losses.slot_values import check_slots, is_ours
from hfkd.tasks.base import Task
from hfkd.training.forward.micro_batch import MicroBatch
from hfkd.training.forward.strips import by_strips
from hfkd.training.validation.probabilities import refuse_log_probabilities
from hfkd.utils.random_state import kept_random_state

SlotCheck = Callable[[Mapping[str, Any], Tensor, Tensor], None]  # batch, logits of the student, logits of the teacher


def slot_check(loss: DistillationLoss, task: Task, num_classes: int | None, chunk_size: int = 0) -> SlotCheck:
    """A function that runs `check_slots` on a batch and the logits of student and teacher, and `check_objectives`.

    Objectives on inner layers are checked when they are built.
    """
    in_parts = bool(chunk_size) or (task.by_map and by_strips(loss))
    terms = [term for term in loss.terms if not is_ours(term.objective)] if loss.kd_weight else []

    def check(batch: Mapping[str, Any], student: Tensor, teacher: Tensor) -> None:
        if loss.kd_weight and task.class_ids:
            refuse_log_probabilities(loss.temperature, teacher)
        if loss.own_slots or terms or not loss.labelled:
            student, teacher = (z[..., :num_classes].cpu() for z in (student, teacher))
            given = MicroBatch(batch).placed(task.items(batch, student, teacher))
            check_slots(loss, loss.seen(given))
            alone = [term for term in terms if reads_logits_alone(term.objective)]
            check_objectives(alone, loss.seen(given), loss, in_parts)
            if not loss.labelled:
                _refuse_readers_of_labels(loss, loss.seen(given), given)

    return check


def _refuse_readers_of_labels(loss: DistillationLoss, items: Items, labelled: Items) -> None:
    """Raise ValueError for a user-defined slot that works on `labelled` items and fails without the labels."""
    ones = torch.ones(len(items), device=items.sample.device)
    for name, more in (("objective", (ones,)), ("temperature", ()), ("weighting", ())):
        slot = getattr(loss, name)
        error = None if is_ours(slot) else _failure(slot, items, *more)
        if error is not None and _failure(slot, labelled, *more) is None:
            raise ValueError(
                f"the training rows have no labels, and the {name} fails without them ({type(error).__name__}: "
                f"{error}): choose one that does not read items.labels, or add labels"
            ) from error


def _failure(slot: Any, *given: Any) -> Exception | None:
    """The exception raised by a copy of the slot, if any; a copy, because a slot may have state."""
    try:
        with kept_random_state(), torch.no_grad():
            copy.deepcopy(slot)(*given)
    except Exception as error:
        return error
    return None
