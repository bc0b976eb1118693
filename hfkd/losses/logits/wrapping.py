"""The base class of objectives that wrap another objective."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from hfkd.losses.base import Objective, Requirements, Slot, requirements_of, softens, trained_modules
from hfkd.losses.context import BuildContext
from hfkd.losses.items import Items
from hfkd.losses.registry import OBJECTIVES
from hfkd.utils.slots import resolve


@dataclass
class Wrapping(Objective):
    """Wraps `objective`, and has its requirements."""

    objective: Any = "kd"
    _inner: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._inner = resolve(self.objective, OBJECTIVES, "objective")
        self.divergence = not isinstance(self._inner, Objective) or self._inner.divergence

    @property
    def level(self) -> Literal["item", "sample"]:  # type: ignore[override]
        return self._inner.level if isinstance(self._inner, Objective) else "item"

    @property
    def has_own_loss(self) -> bool:
        return isinstance(self._inner, Objective) and self._inner.has_own_loss

    def own_loss(self, items: Items, temperature: Tensor) -> Tensor | None:
        return self._inner.own_loss(items, temperature) if isinstance(self._inner, Objective) else None

    @property
    def softens(self) -> bool:  # type: ignore[override]
        return softens(self._inner)

    @property
    def builds(self) -> bool:
        return isinstance(self._inner, Objective) and self._inner.builds

    def build(self, context: BuildContext) -> None:
        if isinstance(self._inner, Objective):
            self._inner.build(context)

    def trained_modules(self) -> list[nn.Module]:
        return trained_modules(self._inner)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self._inner.parameter_groups() if isinstance(self._inner, Slot) else []

    def requirements(self) -> Requirements:
        return requirements_of(self._inner)
