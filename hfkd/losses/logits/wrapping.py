"""What objectives that wrap another one share."""

from dataclasses import dataclass, field
from typing import Any

from hfkd.losses.base import Objective
from hfkd.utils.slots import resolve


@dataclass
class Wrapping(Objective):
    """An objective around `objective`, whose properties it has."""

    objective: Any = "kd"
    _inner: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from hfkd.losses.logits import OBJECTIVES  # the table lists the subclasses too

        self._inner = resolve(self.objective, OBJECTIVES, "objective")
        for name in ("divergence", "needs_hidden", "relational", "ordered_views", "counts_epochs", "least_items"):
            setattr(self, name, getattr(self._inner, name, getattr(Objective, name)))
