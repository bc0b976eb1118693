"""What a slot of one's own gives is looked at: once when the trainer is built, and in each step without waiting.

A softmax temperature below 0 trains towards the opposite of the teacher, a negative weight away from it, both with a
loss that falls. hfkd's own slots give neither, and are left alone.

N items.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.items import Items
from hfkd.utils.random_state import kept_random_state

ROUNDING = 1e-4  # 1 - max softmax and the like come out a little below 0
RULES = {
    "temperature": "give each item a finite softmax temperature above 0",
    "weighting": "give each item a finite weight of 0 or more; a negative one trains away from the teacher",
}


def is_ours(slot: Any) -> bool:
    """Whether `slot` is of a class of hfkd's, and so is what it wraps."""
    inner = getattr(slot, "_inner", None)
    return type(slot).__module__.partition(".")[0] == "hfkd" and (inner is None or is_ours(inner))


def one_per_item(items: Items, slot: str, values: Any) -> Tensor:
    """`values`, if they are a tensor of one real number an item [N]; else ValueError."""
    if not isinstance(values, Tensor) or values.is_complex() or (slot == "temperature" and values.dtype == torch.bool):
        given = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the {slot} gave {given}: a slot returns a tensor of real numbers, one per item, shape [{len(items)}]"
        )
    if values.shape != (len(items),):
        raise ValueError(
            f"the {slot} gave a tensor of shape {tuple(values.shape)} for {len(items)} items: a slot returns one "
            f"number per item, shape [{len(items)}]; the loss reduces, not the slot"
        )
    return values


def one_per_sample(items: Items, slot: str, values: Any) -> Tensor:
    """`values`, if they are a tensor of one number a sample [S]; else ValueError."""
    if not isinstance(values, Tensor) or values.shape != (items.num_samples,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"the {slot} gave {shape} for {items.num_samples} samples: at level='sample' it returns one number each"
        )
    return values


def right(slot: str, values: Tensor) -> Tensor:
    """Which of `values` [N] a temperature, or a weighting, may have."""
    return values.isfinite() & (values > 0 if slot == "temperature" else values >= -ROUNDING)


def nan_where_wrong(slot: str, values: Tensor) -> Tensor:
    """`values` [N], NaN where they are not `right`: so is the loss then, and whoever watches it stops or skips."""
    return values.where(right(slot, values), torch.nan)


@torch.no_grad()
def check_slots(loss: Any, items: Items) -> None:
    """Ask the loss's own-made temperature and weighting about a few items. ValueError for numbers that are not `right`.

    An error of theirs, or another number of values, is left to the first step: a slot may expect a whole batch.
    """
    for name in loss.own_slots if loss.kd_weight and len(items) else ():
        try:  # a copy, so that one that counts its calls counts none of this
            with kept_random_state():
                values = copy.deepcopy(getattr(loss, name))(items)
        except Exception:
            continue
        if isinstance(values, Tensor) and values.ndim == 1 and len(values) != len(items):
            continue
        wrong = ~right(name, one_per_item(items, name, values))
        if wrong.any():
            value = values[wrong][0].item()
            raise ValueError(f"the {name} gives {value:g} for one of the first rows: {RULES[name]}")
