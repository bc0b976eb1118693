"""Checks of custom slots' values: when the trainer is built, and in each step without a device synchronisation.

With a softmax temperature below 0 the student is trained towards the opposite of the teacher, with a negative weight
away from it, and in both cases the loss decreases. hfkd's own slots return neither, and are not checked.

N items.
"""

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.base import trained_modules
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.losses.slot_state import changed, in_checkpoints, kept_nowhere
from hfkd.utils.messages import some
from hfkd.utils.random_state import kept_random_state
from hfkd.utils.targets import IGNORED

logger = logging.getLogger(__name__)
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
    if values.device != items.sample.device:
        raise ValueError(
            f"the {slot} returned a tensor on {values.device}, and the items are on {items.sample.device}: create "
            "tensors with device=items.sample.device, and keep constant ones in an nn.Module (register_buffer)"
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
        few = repeated(items, len(items) + 1) if len(items) == items.student.num_classes else items
        try:
            with kept_random_state(), on_copy(name, getattr(loss, name)) as slot, refuse_overwritten(name, few):
                with torch.enable_grad():
                    values = slot(few)
                refuse_untrained(name, slot, [values])
        except Refused:
            raise
        except Exception:
            continue
        if isinstance(values, Tensor) and values.ndim == 1 and len(values) != len(few):
            refuse_classes(name, few, values)
            continue
        wrong = ~right(name, one_per_item(few, name, values).detach())
        if wrong.any():
            value = values[wrong][0].item()
            raise ValueError(f"the {name} returned {value:g} for one of the first rows: {RULES[name]}")


class Refused(ValueError):
    """A slot does what would train something else; it did not fail by itself."""


@contextmanager
def on_copy(name: str, slot: Any, warns: bool = True) -> Iterator[Any]:
    """A copy of the slot to call, so that one with state is not changed. Warns of state that is not in checkpoints.

    Raises Refused for parameters and buffers that it makes in the call.
    """
    tried, before = copy.deepcopy(slot), kept_nowhere(copy.deepcopy(slot))
    had = in_checkpoints(tried)
    yield tried
    if made := sorted(in_checkpoints(tried) - had):
        raise Refused(
            f"the {name} makes {some(made)} when it is called, too late for the optimizer and for a resumed run: make "
            "layers and buffers in __init__ or, from the shapes of the networks' layers, in build(context), as an "
            "hfkd.Objective has it"
        )
    found = changed(before, kept_nowhere(tried))
    if found and warns:
        logger.warning(
            "The %s changes its attribute %s when it is called. Checkpoints do not have it, so that a resumed run "
            "begins with another: unless it only saves time, keep it in a persistent buffer of an nn.Module "
            "(register_buffer), and draw random numbers from torch's own generator.",
            name,
            " and ".join(found),
        )


def refuse_untrained(name: str, slot: Any, values: Iterable[Any], inputs: Iterable[Tensor] = ()) -> None:
    """Raise Refused for parameters that the values depend on and that nothing would train.

    inputs: what the values may depend on besides.
    """
    known = {id(one) for one in inputs}
    if name != "weighting":
        known |= {id(one) for module in trained_modules(slot) for one in module.parameters()}
    given = [one for one in values if isinstance(one, Tensor)]
    found = [leaf for one in given for leaf in leaves(one) if id(leaf) not in known]
    if not found:
        return
    shapes = ", ".join(str(list(shape)) for shape in dict.fromkeys(tuple(one.shape) for one in found))
    if name == "weighting":
        raise Refused(
            f"the weighting has trainable parameters of shape {shapes}, and weights are computed without gradient, so "
            "that nothing would train them: call requires_grad_(False) on what should stay as it is, or learn a factor "
            "in the values of an objective of your own"
        )
    raise Refused(
        f"the {name} uses trainable parameters of shape {shapes} that are not its own, so that nothing would train, "
        f"move or save them: derive it from nn.Module too (class Mine(nn.Module, {name.capitalize()})), and keep them "
        "as attributes (several in an nn.ModuleList); of parameters that should stay as they are, call "
        "requires_grad_(False)"
    )


def leaves(values: Tensor) -> Iterator[Tensor]:
    """The tensors whose gradient would be accumulated by a backward pass from `values`."""
    if values.requires_grad and values.grad_fn is None:
        yield values
    seen: set[Any] = set()
    todo: list[Any] = [values.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            yield variable
        todo += [following for following, _ in node.next_functions]


@contextmanager
def refuse_overwritten(slot: str, items: Items, temperature: Tensor | None = None) -> Iterator[None]:
    """Context in which a slot is called. Raises Refused if it changes in place what the rest of the loss reads.

    Autograd notices only some of these changes, and none that a weighting makes.
    """
    read = {} if items.labels is None else {"items.labels": items.labels}
    for name, outputs in (("student", items.student), ("teacher", items.teacher)):
        if type(outputs) is Outputs:
            kept = outputs.features if outputs.kept is not None else {}
            read |= {f"items.{name}.logits": outputs.logits}
            read |= {f"items.{name}.features[{k!r}]": v for k, v in kept.items() if isinstance(v, Tensor)}
    if temperature is not None:
        read["the temperature"] = temperature
    before = {name: tensor._version for name, tensor in read.items()}
    yield
    altered = [name for name, tensor in read.items() if tensor._version != before[name]]
    if altered:
        raise Refused(
            f"the {slot} changes {' and '.join(altered)} in place, which the other parts of the loss read too: write "
            "z = z / 2 instead of z /= 2, z.masked_fill(...) instead of z.masked_fill_(...), or copy first (clone())"
        )


def refuse_classes(slot: str, items: Items, values: Tensor) -> None:
    """Raise ValueError for C values, which would be taken for those of items in batches of C."""
    if type(items.student) is Outputs and len(values) == items.student.num_classes:
        raise ValueError(
            f"the {slot} returned {len(values)} numbers for {len(items)} items, as many as there are classes: reduce "
            "the logits [items, classes] over their last dimension (dim=-1)"
        )


def repeated(items: Items, count: int) -> Items:
    """`count` items: the first ones, over and over. `items` themselves where their logits are not one row each."""
    plain = all(type(one) is Outputs and one.kept is None for one in (items.student, items.teacher))
    if not plain or not items.own_sample or items.views != 1 or not len(items):
        return items
    at = torch.arange(count, device=items.sample.device) % len(items)

    def of(outputs: Outputs) -> Outputs:
        return replace(outputs, logits=outputs.logits[at])

    labels = None if items.labels is None else items.labels[at]
    labelled = None if labels is None or items.labelled is None else labels.ne(IGNORED).sum()
    return replace(
        items,
        student=of(items.student),
        teacher=of(items.teacher),
        teachers=tuple(map(of, items.teachers)),
        labels=labels,
        sample=torch.arange(count, device=items.sample.device),
        num_samples=count,
        labelled=labelled,
        index=None if items.index is None else items.index[at],
    )


def first(items: Items, count: int) -> Items:
    """The first `count` items, as in a chunk of a loss; all of them where the rows of logits are not items."""
    outputs = (items.student, items.teacher, *items.teachers)
    if count >= len(items) or items.views != 1 or any(type(one) is not Outputs or one.kept for one in outputs):
        return items
    rows = slice(count)
    student, teacher, *teachers = (one.rows(rows) for one in outputs)
    given = {name: getattr(items, name) for name in ("labels", "row", "share")}
    cut: dict[str, Any] = {name: None if value is None else value[rows] for name, value in given.items()}
    return replace(
        items,
        student=student,
        teacher=teacher,
        teachers=tuple(teachers),
        sample=items.sample[rows],
        num_samples=count if items.own_sample else items.num_samples,
        index=items.index[rows] if items.own_sample and items.index is not None else items.index,
        labelled=None,
        **cut,
    )
