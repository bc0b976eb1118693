"""Checks of custom slots' values: when the trainer is built, and in each step without a device synchronisation.

With a softmax temperature below 0 the student is trained towards the opposite of the teacher, with a negative weight
away from it, and in both cases the loss decreases. hfkd's own slots return neither, and are not checked.

N items.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.items import Items
from hfkd.utils.random_state import kept_random_state

ROUNDING = 1e-4  # values such as 1 - max softmax may be slightly below 0
RULES = {
    "temperature": "return a finite softmax temperature above 0 for each item",
    "weighting": "return a finite weight of 0 or more for each item; a negative weight trains away from the teacher",
}


def is_ours(slot: Any) -> bool:
    """Whether the classes of `slot` and of the slot it wraps, if any, belong to hfkd."""
    inner = getattr(slot, "_inner", None)
    return type(slot).__module__.partition(".")[0] == "hfkd" and (inner is None or is_ours(inner))


def one_per_item(items: Items, slot: str, values: Any) -> Tensor:
    """`values`, which must be a tensor of one real number per item [N]. Raises ValueError otherwise."""
    if not isinstance(values, Tensor) or values.is_complex() or (slot == "temperature" and values.dtype == torch.bool):
        given = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the {slot} returned {given}: a slot must return a tensor of real numbers, one per item, of shape "
            f"[{len(items)}]"
        )
    if values.shape != (len(items),):
        raise ValueError(
            f"the {slot} returned a tensor of shape {tuple(values.shape)} for {len(items)} items: a slot must return "
            f"one number per item, of shape [{len(items)}], and leave the reduction to the loss"
        )
    return values


def one_per_sample(items: Items, values: Any) -> Tensor:
    """An objective's `values`, which must be a tensor of one number per sample [S]. Raises ValueError otherwise."""
    if not isinstance(values, Tensor) or values.shape != (items.num_samples,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the objective returned {shape} for {items.num_samples} samples: with level='sample' it must return one "
            "number per sample"
        )
    return values


def right(slot: str, values: Tensor) -> Tensor:
    """Which of `values` [N] are valid for a temperature or a weighting."""
    return values.isfinite() & (values > 0 if slot == "temperature" else values >= -ROUNDING)


def nan_where_wrong(slot: str, values: Tensor) -> Tensor:
    """`values` [N], with NaN where they are not `right`: the loss is then handled as any non-finite loss."""
    return values.where(right(slot, values), torch.nan)


@torch.no_grad()
def check_slots(loss: Any, items: Items) -> None:
    """Call the loss's custom slots on a few items. Raises ValueError for values that are not `right`.

    Exceptions and wrong numbers of values are left to the first step, because a slot may expect a whole batch.
    """
    for name in loss.own_slots if loss.kd_weight and len(items) else ():
        try:  # a copy, so that a slot with state is not changed
            with kept_random_state():
                values = copy.deepcopy(getattr(loss, name))(items)
        except Exception:
            continue
        if isinstance(values, Tensor) and values.ndim == 1 and len(values) != len(items):
            continue
        wrong = ~right(name, one_per_item(items, name, values))
        if wrong.any():
            value = values[wrong][0].item()
            raise ValueError(f"the {name} returned {value:g} for one of the first rows: {RULES[name]}")
