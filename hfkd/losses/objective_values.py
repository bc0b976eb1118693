"""Checks of custom objectives on the first rows, when the trainer is built.

An objective may run without an error and still not train the student as meant: where it detaches the student's logits,
overwrites them for the other parts of the loss, mixes up items and classes, or has parameters that no optimizer gets.

N items, C classes.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hfkd.losses.base import Objective, requirements_of, softens
from hfkd.losses.items import Items
from hfkd.losses.outputs import Outputs
from hfkd.losses.slot_values import (
    Refused,
    first,
    is_ours,
    leaves,
    on_copy,
    one_per_item,
    one_per_sample,
    refuse_classes,
    refuse_overwritten,
    refuse_untrained,
    repeated,
)
from hfkd.losses.temperatures import Constant
from hfkd.losses.terms import Term
from hfkd.utils.random_state import kept_random_state

logger = logging.getLogger(__name__)
MOST_CLASSES = 1024  # of more, logits [C, C] are not made for a check
MOST_LOGITS = 2**22  # of a few rows of tokens or pixels, which may be thousands of items


@dataclass
class _Try:
    """What a copy of an objective returned: its values, its relations and its own loss if it has any."""

    objective: Any
    items: Items
    starts: list[Tensor]  # what the student gives, from which gradients are wanted
    values: Any
    relations: Tensor | None = None
    own: Tensor | None = None


def check_objectives(terms: Iterable[Term], items: Items, loss: Any, in_parts: bool = False) -> None:
    """Call custom objectives on a few items, with gradients. Raises ValueError for those that train something else.

    in_parts: whether the loss, which has these terms, is computed over chunks of items. An objective that raises is
    warned of: it may expect a whole batch.
    """
    readers = [term for term in loss.terms if softens(term.objective)]
    chosen = loss.temperature_chosen or not isinstance(loss.temperature, Constant)
    if not all(type(one) is Outputs for one in (items.student, items.teacher)):  # stored ones, or groups of tokens
        return
    for term in terms:
        if not is_ours(term.objective):
            some = items if term.by_sample else first(items, max(MOST_LOGITS // items.student.num_classes, 8))
            unread = loss.temperature if chosen and readers == [term] else None
            _check(term.objective, _enough(some, term.objective), in_parts and not term.by_sample, unread)


def _check(objective: Any, items: Items, in_parts: bool, unread: Any) -> None:
    try:
        tried = _try(objective, items)
    except Refused:
        raise
    except Exception as error:
        _look_at_failure(objective, items, error)
        return
    if _others(objective, items, tried.values):
        return
    check = one_per_sample if getattr(objective, "level", "item") == "sample" else _one_per_item
    check(items, tried.values)
    _refuse_no_gradient(tried)
    refuse_untrained("objective", tried.objective, (tried.values, tried.relations, tried.own), tried.starts)
    if unread is not None:
        _warn_unread(objective, items, tried, unread)
    if check is _one_per_item and not requirements_of(objective).relations:
        _look_at_relations(objective, items, tried, in_parts)


def _warn_unread(objective: Any, items: Items, tried: _Try, temperature: Any) -> None:
    """Warn if the values that are not 0 are the same at other temperatures."""
    again = _try(objective, items, of=2 * len(items))  # nearer to 1
    pairs = ((tried.values, again.values), (tried.relations, again.relations))
    known = [(one.detach(), other.detach()) for one, other in pairs if one is not None and other is not None]
    if all(torch.equal(one, other) for one, other in known) and any(bool(one.any()) for one, _ in known):
        logger.warning(
            "The objective's values on the first rows are the same at other temperatures, so that %r has no effect, "
            "although the log and results.json have it: divide the logits by the objective's second argument [items] "
            "(items.log_probabilities(temperature), or z / temperature.unsqueeze(-1)), or leave the temperature out.",
            temperature,
        )


def _look_at_relations(objective: Any, items: Items, tried: _Try, in_parts: bool) -> None:
    """Look whether the first items have other values without the last. ValueError in the chunks of a loss, where they
    are without them; otherwise a warning if they are all of their samples.
    """
    # In chunks: of two rows, not the whole first.
    part = first(items, max(len(items) // 3, 1) if in_parts else _of_first_sample(items))
    if len(part) == len(items) or not _same(_try(objective, items, skip=1).values, tried.values):  # it draws numbers
        return
    try:
        found = _try(objective, part, of=len(items)).values
    except Exception:  # as its first step would
        return
    if _same(found, tried.values[: len(part)]):
        return
    if in_parts:
        raise ValueError(
            f"the objective gives {len(part)} items other values alone than among {len(items)}, and the loss is "
            "computed for a few items at a time: derive it from hfkd.Objective, with a method requirements() that "
            "returns Requirements(relations=True) (hfkd.losses.base), and leave loss_chunk_size at 0"
        )
    logger.warning(
        "The objective gives %d of the first items other values alone than among %d. If it compares items, derive it "
        "from hfkd.Objective, with a method requirements() that returns Requirements(relations=True) "
        "(hfkd.losses.base). If it does not mean to, look for values [items, 1] beside others [items], which make "
        "[items, items] of both.",
        len(part),
        len(items),
    )


def _of_first_sample(items: Items) -> int:
    """The number of items of the first sample that has any."""
    return int((items.sample == items.sample[0]).sum()) if len(items) else 0


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-5, equal_nan=True)


def _one_per_item(items: Items, values: Any) -> Tensor:
    return one_per_item(items, "objective", values)


@torch.enable_grad()
def _try(objective: Any, items: Items, of: int | None = None, skip: int = 0) -> _Try:
    """The result for `items`, whose student's outputs are made to need gradients.

    of: how many items these are the first of. skip: how many random numbers are drawn before.
    """
    starts: list[Tensor] = []

    def started(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        starts.append(tensor.detach().clone().requires_grad_())
        return starts[-1].clone()  # which may be changed in place, as what a network returns

    student = items.student
    kept = None if student.kept is None else student.features.mapped(started)
    items = replace(items, student=replace(student, logits=started(student.logits), kept=kept))
    temperature = 1 + torch.arange(1, len(items) + 1, device=items.sample.device) / (of or len(items))
    with kept_random_state(), on_copy("objective", objective, warns=not (of or skip)) as tried:
        torch.rand(skip)
        with refuse_overwritten("objective", items, temperature):
            values = tried(items, temperature)
        found = _Try(tried, items, starts, values)
        if isinstance(tried, Objective):
            found.relations, found.own = tried.relations(items, temperature), tried.own_loss(items, temperature)
    return found


def _enough(items: Items, objective: Any) -> Items:
    """At least as many items as the objective needs, and not as many as classes, which could hide a mix-up."""
    needs = requirements_of(objective)
    count = max(len(items), needs.items, needs.samples)
    count += count == items.student.num_classes
    return repeated(items, count) if count > len(items) else items


def _others(objective: Any, items: Items, values: Any) -> bool:
    """Whether there are more or fewer values than items, as of a slot for whole batches. ValueError for C values."""
    other = isinstance(values, Tensor) and values.ndim == 1 and len(values) not in (len(items), items.num_samples)
    if other:
        refuse_classes("objective", items, values)
    return other


def _look_at_failure(objective: Any, items: Items, error: Exception) -> None:
    """Warn of an objective that fails. ValueError if it works where there are as many items as classes."""
    classes = items.student.num_classes
    square = repeated(items, classes) if classes <= MOST_CLASSES else items
    if len(square) == classes and isinstance(error, RuntimeError) and _works(lambda: _try(objective, square)):
        raise ValueError(
            f"the objective works for {classes} items, as many as there are classes, but not for {len(items)} "
            f"({error}): it takes one for the other; values of each item, such as the temperature [items], need a last "
            "dimension (temperature.unsqueeze(-1)) beside logits [items, classes]"
        ) from error
    logger.warning(
        "The objective fails on the first %d items (%s: %s). Unless it needs a whole batch, training will end in its "
        "first step.",
        len(items),
        type(error).__name__,
        error,
    )


def _works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return False
    return True


def _refuse_no_gradient(tried: _Try) -> None:
    """Raise ValueError if values that are not 0 do not depend on the student; warn of zeros, which a mask may leave."""
    if tried.own is not None:  # which may train what the objective is about
        return
    starts = {id(one) for one in tried.starts}
    parts = [tried.values] + [one for one in (tried.relations,) if one is not None]
    if any(id(leaf) in starts for part in parts for leaf in leaves(part)):
        return
    message = (
        "the objective's values have no gradient for the student, which would not learn from the teacher: compute them "
        "from the student's outputs (items.student) without detach(), no_grad(), argmax() or numpy"
    )
    if any(bool(part.detach().ne(0).any()) for part in parts):
        raise ValueError(message)
    logger.warning("On the first rows %s. They are 0 there; if a mask leaves out these rows, all is well.", message)


def reads_logits_alone(objective: Any) -> bool:
    """Whether an objective can be called without inner layers, and before it is built."""
    return not (requirements_of(objective).features or (isinstance(objective, Objective) and objective.builds))
