"""Logit standardisation: any objective on z-scored logits."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from hfkd.items import Items, Outputs
from hfkd.objectives.base import Objective
from hfkd.signals import upcast
from hfkd.slots import resolve


@dataclass
class Standardized(Objective):
    """Sun et al., CVPR 2024, Eq. 11: z -> (z - mean z) / (std z + 1e-7) for both networks, then the objective.

    std is the unbiased one (ddof 1), as released. The paper pairs it with T = 2 and a KD weight of 9 beside CE 0.1.
    Only the objective sees standardised logits: temperatures and weights still see the raw ones.
    """

    objective: Any = "kd"
    _inner: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from hfkd.objectives import OBJECTIVES  # the table lists this class too

        self._inner = resolve(self.objective, OBJECTIVES, "objective")
        self.needs_hidden = getattr(self._inner, "needs_hidden", False)
        self.relational = getattr(self._inner, "relational", False)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        seen = replace(items, student=_standardize(items.student), teacher=_standardize(items.teacher))
        return self._inner(seen, temperature)


def _standardize(outputs: Outputs) -> Outputs:
    z = upcast(outputs.logits)
    z = (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-7)
    return replace(outputs, logits=z)


standardized = Standardized
