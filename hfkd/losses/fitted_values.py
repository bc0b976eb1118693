"""Checks of custom temperatures that are fitted to the training set, before the scan that may take minutes."""

import copy
from typing import Any

import torch

from hfkd.losses.slot_state import differ
from hfkd.losses.slot_values import is_ours
from hfkd.losses.temperatures import Fitted
from hfkd.utils.argument_types import SoftmaxTemperature, fitting


def check_fitted(slot: Any) -> None:
    """Fit a copy of a custom `Fitted` to made-up energies. Raises ValueError if a resumed run would be another.

    Of a fit, checkpoints keep the thresholds, which `restore` gets.
    """
    if not isinstance(slot, Fitted) or is_ours(slot):
        return
    name = type(slot).__name__
    fitting(name, "energy_temperature", getattr(slot, "energy_temperature", None), SoftmaxTemperature)
    fitted, restored = copy.deepcopy(slot), copy.deepcopy(slot)
    try:
        fitted.fit(torch.linspace(-20, -1, 200))
    except Exception:  # it may need other energies
        return
    found: Any = fitted.thresholds_or_none
    if not _numbers(found):
        raise ValueError(
            f"{name}: thresholds_or_none is {found!r} after fit(), and must be a tuple of finite numbers, which "
            "checkpoints keep and restore() gets: return all that was fitted, (self.mean,) for one number"
        )
    restored.restore(tuple(found))
    before, after = vars(fitted), vars(restored)
    if changed := [key for key in before if key not in after or differ(before[key], after[key])]:
        raise ValueError(
            f"{name}: restore(thresholds) does not set {' and '.join(changed)} to what fit() had set, so that a "
            "resumed run would have other temperatures: return all that was fitted as thresholds_or_none, and set it "
            "in restore()"
        )


def refuse_fitted(slot: str, value: Any) -> None:
    """Raise ValueError for an objective or a weighting that expects to be fitted, which only temperatures are."""
    if isinstance(value, Fitted):
        raise ValueError(
            f"the {slot} {type(value).__name__} derives from Fitted, and only a temperature is fitted to the training "
            "set: compute its statistics first (hfkd.teachers.scan(...).energy), and pass them to its constructor"
        )


def _numbers(found: Any) -> bool:
    if not isinstance(found, (tuple, list)) or not found:
        return False
    return all(isinstance(one, (int, float)) and abs(one) < float("inf") for one in found)
