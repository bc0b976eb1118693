"""Which of a command's settings win: later ones over earlier ones, and with them what they stand for."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

logger = logging.getLogger(__name__)

# A setting, and those of earlier layers that would keep it from having any effect.
EXCLUDES = {
    "lr_scheduler_type": ("lr_decay_epochs",),
    "lr_decay_epochs": ("lr_scheduler_type", "lr_scheduler_kwargs"),
    "num_train_epochs": ("max_steps",),
}
# A setting, and what another has to be for it to count.
NEEDS = {
    "logging_steps": ("logging_strategy", "steps"),
    "eval_steps": ("eval_strategy", "steps"),
    "save_steps": ("save_strategy", "steps"),
}
# A setting, and the arguments of its earlier value, which another does not take.
ARGUMENTS = {"lr_scheduler_type": "lr_scheduler_kwargs", "optim": "optim_args"}
UNSET = (None, -1)  # max_steps is -1 where epochs count


def merge(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of all layers, the later ones winning, also over what would keep them from having any effect.

    A learning-rate schedule puts an earlier layer's decay epochs out of force, `eval_steps` its evaluation by epochs,
    and so on, which is said in the log. Raises ValueError for a layer that has both such a schedule and decay epochs.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        chosen = {name: value for name, value in layer.items() if value not in UNSET}
        _refuse_two_schedules(chosen)
        for name, value in chosen.items():
            others = EXCLUDES.get(name, ())
            if name in ARGUMENTS and value != merged.get(name):
                others = (*others, ARGUMENTS[name])
            for other in others:
                if other not in layer and (earlier := merged.pop(other, None)) not in UNSET:
                    _say(f"{name}={value} takes the place of {other}={earlier}")
            _make_count(name, value, layer, merged)
        merged |= layer
    return merged


def _make_count(name: str, value: Any, layer: Mapping[str, Any], merged: dict[str, Any]) -> None:
    other, needed = NEEDS.get(name, (None, None))
    if other is None or other in layer:
        return
    earlier = merged.get(other)
    merged[other] = needed
    if earlier not in (None, needed):
        _say(f"{name}={value} takes the place of {other}={earlier}")


def _refuse_two_schedules(layer: Mapping[str, Any]) -> None:
    names = ("lr_scheduler_type", "lr_decay_epochs")
    if all(name in layer for name in names):
        both = " and ".join(f"{name}={layer[name]}" for name in names)
        raise ValueError(f"{both}: the learning rate follows one of them; leave the other out")


@lru_cache
def _say(message: str) -> None:
    """Once a process, however often its command is parsed."""
    logger.info("%s.", message)
