"""Refuses attributes of a subclass of the trainer that have the name of one of the trainer's own."""

import inspect
from typing import Any

# Attributes in which a trainer keeps a part of hfkd.
OWN = (
    *("call", "config", "distillation_loss", "empty_rows", "epoch_length", "evaluated", "evaluation_loaders", "files"),
    *("judged", "labels", "made_optimizer", "marks", "preparation", "record", "schedule", "setup", "step", "task"),
    "whole",
)


def refuse_own_names(trainer: Any, ours: type) -> None:
    """Raise ValueError for a name of `OWN` in a subclass of the class `ours`, or set before its constructor runs.

    What the subclass has under this name, such as a method distillation_loss, would be replaced.
    """
    kinds = type(trainer).__mro__
    names = {name for kind in kinds[: kinds.index(ours)] for name in vars(kind)} | vars(trainer).keys()
    if taken := sorted(names.intersection(OWN)):
        _refuse(trainer, taken[0], "has")


def kinds_of(trainer: Any) -> dict[str, type]:
    """The classes of a trainer's own attributes, once it is built."""
    return {name: type(getattr(trainer, name)) for name in OWN}


def refuse_replaced(trainer: Any) -> None:
    """Raise ValueError if a subclass has set one of the trainer's own attributes to something of its own since."""
    for name, was in trainer.built.kinds.items():
        value = getattr(trainer, name)
        now = type(value)
        if now is not was and now.__module__.partition(".")[0] != "hfkd" and not inspect.isroutine(value):
            _refuse(trainer, name, f"has set a {now.__name__} as")


def _refuse(trainer: Any, name: str, has: str) -> None:
    raise ValueError(
        f"{type(trainer).__name__} {has} an attribute {name!r}, the name of one of DistillationTrainer's own, which it "
        f"needs: choose another name, such as my_{name}"
    )
