"""The precedence of settings: later ones override earlier ones, and those that conflict with them."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from hfkd.utils.dependent_settings import ONLY_WITH, is_on

logger = logging.getLogger(__name__)

# A setting, and those of earlier layers with which it would have no effect.
EXCLUDES = {
    "lr_scheduler_type": ("lr_decay_epochs", "lr_decay_factor"),
    "lr_decay_epochs": ("lr_scheduler_type", "lr_scheduler_kwargs"),
    "num_train_epochs": ("max_steps",),
}
# A setting, and the value of another one that it needs to have an effect.
NEEDS = {
    "logging_steps": ("logging_strategy", "steps"),
    "eval_steps": ("eval_strategy", "steps"),
    "save_steps": ("save_strategy", "steps"),
}
# A setting, and the setting with the arguments of its value, which do not fit another value.
ARGUMENTS = {"lr_scheduler_type": "lr_scheduler_kwargs", "optim": "optim_args"}
UNSET = (None, -1)  # max_steps is -1 if the number of epochs is used


def merge(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of all layers; later ones override earlier ones, and those with which they would have no effect.

    For example, a learning-rate schedule removes the decay epochs of an earlier layer, and `eval_steps` its evaluation
    by epochs; this is logged. Raises ValueError for a layer with both a schedule and decay epochs.
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
                    _say(f"{name}={value} replaces {other}={earlier}")
            _make_count(name, value, layer, merged)
        _leave_out_what_is_off(layer, merged)
        merged |= layer
    return merged


def _leave_out_what_is_off(layer: Mapping[str, Any], merged: dict[str, Any]) -> None:
    """Remove earlier settings that have no effect because this layer turns off the one that they need."""
    for switches, names in ONLY_WITH.items():
        off = next((name for name in switches if name in layer), None)
        if off is None or is_on(switches, {**merged, **layer}):
            continue
        for name in names:
            if name not in layer and (earlier := merged.pop(name, None)) is not None:
                _say(f"{off}={layer[off]} replaces {name}={earlier}")


def _make_count(name: str, value: Any, layer: Mapping[str, Any], merged: dict[str, Any]) -> None:
    other, needed = NEEDS.get(name, (None, None))
    if other is None or other in layer:
        return
    earlier = merged.get(other)
    merged[other] = needed
    if earlier not in (None, needed):
        _say(f"{name}={value} replaces {other}={earlier}")


def _refuse_two_schedules(layer: Mapping[str, Any]) -> None:
    names = ("lr_scheduler_type", "lr_decay_epochs")
    if all(name in layer for name in names):
        both = " and ".join(f"{name}={layer[name]}" for name in names)
        raise ValueError(f"{both}: only one of them can define the learning rate; leave the other out")


@lru_cache
def _say(message: str) -> None:
    """Log a message once per process."""
    logger.info("%s.", message)
