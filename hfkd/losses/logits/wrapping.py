"""What objectives that wrap another one share."""

from dataclasses import dataclass, field
from typing import Any

from hfkd.losses.base import Objective, Requirements, requirements_of
from hfkd.losses.registry import OBJECTIVES
from hfkd.utils.slots import resolve


@dataclass
class Wrapping(Objective):
    """An objective around `objective`, whose requirements it has."""

    objective: Any = "kd"
    _inner: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._inner = resolve(self.objective, OBJECTIVES, "objective")
        self.divergence = not isinstance(self._inner, Objective) or self._inner.divergence

    def requirements(self) -> Requirements:
        return requirements_of(self._inner)
