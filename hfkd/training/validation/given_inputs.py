"""Refuses inputs that a network needs and does not get, or that rows have for the teacher and it does not get."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from hfkd.models.calling import INPUTS, OWN_PREFIX, Call, bare
from hfkd.tasks.base import Task
from hfkd.tasks.causal_lm import CausalLM

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def missing_inputs(network: nn.Module) -> Callable[[Mapping[str, Any]], list[str]]:
    """A function of a batch: which arguments without a default, of a network that is called by name, it has not.

    To find these arguments takes as long as a small network's forward, which a loop over batches does once.
    """
    call = Call.of(network)
    if type(call) is not Call or call.keywords is None:
        return lambda batch: []
    parameters = inspect.signature(bare(network).forward).parameters.values()
    needed = {one.name for one in parameters if one.kind in NAMED and one.default is one.empty}
    return lambda batch: sorted(needed - call.taken(batch).keys())


def refuse_missing_inputs(whose: str, network: nn.Module, batch: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments without a default that the batch has not. Labels are given to no network."""
    missing = missing_inputs(network)(batch)
    if not missing:
        return
    said = f"the {whose}, a {type(bare(network)).__name__}, needs {' and '.join(missing)} in its forward"
    if "labels" in missing:
        raise ValueError(
            f"{said}, and hfkd computes the loss from the logits, without giving networks the labels: make it "
            "labels=None, and return the logits where there are none"
        )
    raise ValueError(
        f"{said}, which the batch lacks ({sorted(batch)}): name its arguments as in the batch, or give them a default"
    )


def refuse_unread_inputs(
    student: nn.Module, teachers: Sequence[nn.Module], rows: Sequence[Any], batch: Mapping[str, Any], task: Task
) -> None:
    """Raise ValueError for inputs of a teacher's own (teacher_pixel_values) where it would be given the student's.

    Rows of a causal language model with tokens for two networks are looked at by `tasks.two_tokenizers`.
    """
    if task.own_rows or not teachers:
        return
    known = {*batch} | ({*rows[0]} if rows and isinstance(rows[0], Mapping) and type(task) is not CausalLM else set())
    calls = [Call.of(network) for network in (student, *teachers)]
    for name in sorted(INPUTS):
        own = f"{OWN_PREFIX}{name}"
        if own in known and not any(call.takes(own) for call in calls):
            raise ValueError(
                f"the rows have {own}, as if for the teacher alone, but the teacher, a "
                f"{type(bare(teachers[0])).__name__}, would be given {name}, as the student is: pass an nn.Module as "
                f"the teacher whose forward has the argument {own}, or leave that column out"
            )
