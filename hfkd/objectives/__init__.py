"""Objectives: how far the student is from the teacher on each item. `(Items, T [N]) -> [N]`."""

from collections.abc import Callable
from typing import Any

from hfkd.objectives.base import Objective
from hfkd.objectives.divergences import KD
from hfkd.objectives.dkd import DKD
from hfkd.objectives.standardized import Standardized, standardized

OBJECTIVES: dict[str, Callable[..., Any]] = {"dkd": DKD, "kd": KD, "standardized": Standardized}

__all__ = ["DKD", "KD", "OBJECTIVES", "Objective", "Standardized", "standardized"]
