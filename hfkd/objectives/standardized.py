"""Logit standardisation: any objective on z-scored logits."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from hfkd.items import Items
from hfkd.objectives.base import Objective
from hfkd.signals import standardize
from hfkd.slots import resolve


@dataclass
class Standardized(Objective):
    """Sun et al., CVPR 2024, Eq. 11: z -> (z - mean z) / (std z + 1e-7) for both networks, then the objective.

    std is the unbiased one (ddof 1), as released. The paper pairs it with T = 2 and a KD weight of 9 beside CE 0.1.
    Only the objective's per-item part sees standardised logits: temperatures, weights and relations (MLD's batch and
    class terms, as released) see the raw ones.
    """

    objective: Any = "kd"
    _inner: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from hfkd.objectives import OBJECTIVES  # the table lists this class too

        self._inner = resolve(self.objective, OBJECTIVES, "objective")
        self.needs_hidden = getattr(self._inner, "needs_hidden", False)
        self.relational = getattr(self._inner, "relational", False)
        self.divergence = getattr(self._inner, "divergence", True)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        everyone = (items.student, items.teacher, *items.teachers)
        student, teacher, *teachers = (replace(z, logits=standardize(z.logits)) for z in everyone)
        seen = replace(items, student=student, teacher=teacher, teachers=tuple(teachers))
        return self._inner(seen, temperature)

    def relations(self, items: Items, temperature: Tensor) -> Tensor | None:
        return self._inner.relations(items, temperature) if self.relational else None


standardized = Standardized
