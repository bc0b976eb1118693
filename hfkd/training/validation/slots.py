"""What a user's own slots give for the first rows."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.distillation import DistillationLoss
from hfkd.losses.items import Items
from hfkd.losses.slot_values import check_slots, is_ours
from hfkd.tasks.base import Task
from hfkd.utils.random_state import kept_random_state

SlotCheck = Callable[[Mapping[str, Any], Tensor, Tensor], None]  # a batch, and both networks' logits for it


def slot_check(loss: DistillationLoss, task: Task, num_classes: int | None) -> SlotCheck:
    """`check_slots` of a batch and what student and teacher gave for it."""

    def check(batch: Mapping[str, Any], student: Tensor, teacher: Tensor) -> None:
        if loss.own_slots or not loss.labelled:
            student, teacher = (z[..., :num_classes].cpu() for z in (student, teacher))
            given = task.items(batch, student, teacher)
            check_slots(loss, loss.seen(given))
            if not loss.labelled:
                _refuse_readers_of_labels(loss, loss.seen(given), given)

    return check


def _refuse_readers_of_labels(loss: DistillationLoss, items: Items, labelled: Items) -> None:
    """Raise ValueError for a slot of the user's that works on `labelled` items and not on the same without labels."""
    ones = torch.ones(len(items), device=items.sample.device)
    for name, more in (("objective", (ones,)), ("temperature", ()), ("weighting", ())):
        slot = getattr(loss, name)
        error = None if is_ours(slot) else _failure(slot, items, *more)
        if error is not None and _failure(slot, labelled, *more) is None:
            raise ValueError(
                f"the training rows have no labels, and the {name} fails without ({type(error).__name__}: {error}): "
                "choose one that does not read items.labels, or give the rows labels"
            ) from error


def _failure(slot: Any, *given: Any) -> Exception | None:
    """What a copy of the slot raises, so that one that counts its calls counts none of this."""
    try:
        with kept_random_state(), torch.no_grad():
            copy.deepcopy(slot)(*given)
    except Exception as error:
        return error
    return None
