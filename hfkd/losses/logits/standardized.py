"""Logit standardisation: any objective on z-scored logits."""

from dataclasses import dataclass, replace

from torch import Tensor

from hfkd.losses.base import Requirements, requirements_of
from hfkd.losses.functional import standardize
from hfkd.losses.items import Items
from hfkd.losses.logits.wrapping import Wrapping
from hfkd.losses.registry import register_objective
from hfkd.utils.argument_types import checked


@register_objective("standardized")
@checked
@dataclass
class Standardized(Wrapping):
    """Sun et al., CVPR 2024, Eq. 11: z -> (z - mean z) / (std z + 1e-7) for both networks, then the objective.

    std is the unbiased one (ddof 1), as released. The paper uses T = 2 and a KD weight of 9 beside a CE weight of 0.1.
    Only the objective's per-item part uses standardised logits; temperatures, weights and relations (MLD's batch and
    class terms, as released) use the raw ones. The z-scores of two classes are always 0.71 and -0.71: there must be
    three or more.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if requirements_of(self._inner).features:
            raise ValueError(
                f"Standardized: objective={self.objective!r} reads inner layers, and only items' logits are "
                "standardised: use it as another term (standardized + ...)"
            )

    def requirements(self) -> Requirements:
        return replace(super().requirements(), classes=3)

    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        everyone = (items.student, items.teacher, *items.teachers)
        student, teacher, *teachers = (replace(z, logits=standardize(z.logits)) for z in everyone)
        seen = replace(items, student=student, teacher=teacher, teachers=tuple(teachers))
        return self._inner(seen, temperature)

    def relations(self, items: Items, temperature: Tensor) -> Tensor | None:
        return self._inner.relations(items, temperature) if self.requirements().relations else None


standardized = Standardized
