"""A sum of objectives, L = sum_k c_k L_k. Each L_k keeps its level, and its name in the log.

N items, S samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from hfkd.losses.base import (
    Objective,
    Requirements,
    Slot,
    refuse_unread,
    requirements_of,
    softens,
    trained_modules,
    with_settings,
)
from hfkd.losses.context import BuildContext
from hfkd.losses.items import Items
from hfkd.losses.registry import OBJECTIVES
from hfkd.utils.slots import resolve_sum

LONE = "kd"  # the log name of a single objective
RESTS = ("rest", "router_loss", "auxiliary_loss", "detector_loss")
LOGGED = ("loss", "ce", "temperature", "weight", "relations", "own_loss", *RESTS)  # names that the loss logs itself


@dataclass(frozen=True)
class Term:
    """The coefficient c_k and the objective of L_k, with its name in the log."""

    name: str
    coefficient: float
    objective: Any

    @property
    def by_sample(self) -> bool:
        """Whether the term has one value per sample instead of per item."""
        return isinstance(self.objective, Objective) and self.objective.level == "sample"

    @property
    def reads_features(self) -> bool:
        return bool(requirements_of(self.objective).features)


class Terms(nn.Module, Objective):
    """A sum of objectives. `DistillationLoss` calls each term separately; relations and own losses are summed here."""

    def __init__(self, pairs: Sequence[tuple[float, Any]]) -> None:
        super().__init__()
        objectives = [objective for _, objective in pairs]
        if len({id(one) for one in objectives if isinstance(one, nn.Module)}) < sum(
            isinstance(one, nn.Module) for one in objectives
        ):
            raise ValueError(
                "the same objective object is used for two terms, which would share its parameters: build it twice"
            )
        names = _names(objectives)
        self.terms = tuple(Term(name, c, objective) for name, (c, objective) in zip(names, pairs, strict=True))
        self.trained = nn.ModuleList(module for term in self.terms for module in trained_modules(term.objective))
        self.divergence = all(not isinstance(o, Objective) or o.divergence for o in self.objectives)
        self.softens = any(map(softens, self.objectives))
        self.level: Literal["item", "sample"] = "sample" if any(term.by_sample for term in self.terms) else "item"

    @property
    def objectives(self) -> list[Any]:
        return [term.objective for term in self.terms]

    def forward(self, items: Items, temperature: Tensor) -> Tensor:
        """sum_k c_k l_k [N], if all terms are on items. With terms on samples there is no such sum."""
        assert self.level == "item"
        return sum_of([term.coefficient * term.objective(items, temperature) for term in self.terms])

    def requirements(self) -> Requirements:
        return Requirements.joined(map(requirements_of, self.objectives))

    @property
    def builds(self) -> bool:
        return any(isinstance(o, Objective) and o.builds for o in self.objectives)

    def build(self, context: BuildContext) -> None:
        for objective in self.objectives:
            if isinstance(objective, Objective):
                objective.build(context)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [group for o in self.objectives if isinstance(o, Slot) for group in o.parameter_groups()]

    @property
    def has_own_loss(self) -> bool:
        return any(isinstance(o, Objective) and o.has_own_loss for o in self.objectives)

    def relations(self, items: Items, temperature: Tensor) -> Tensor | None:
        found = [
            term.coefficient * values
            for term in self.terms
            if isinstance(term.objective, Objective)
            and (values := term.objective.relations(items, temperature)) is not None
        ]
        return sum_of(found) if found else None

    def own_loss(self, items: Items, temperature: Tensor) -> Tensor | None:
        found = [o.own_loss(items, temperature) for o in self.objectives if isinstance(o, Objective)]
        known = [value for value in found if value is not None]
        return sum_of(known) if known else None

    def __repr__(self) -> str:
        return " + ".join(
            f"{'' if term.coefficient == 1 else f'{term.coefficient:g} * '}{with_settings(term.objective)}"
            for term in self.terms
        )


def resolve_objective(spec: Any) -> Any:
    """The objective from a slot's argument (`resolve_sum`); `Terms` for several objectives, or one with a coefficient.

    An objective without a temperature becomes `Terms` too, so that it is logged under its name.
    """
    pairs = resolve_sum(spec, OBJECTIVES, "objective")
    for _, one in pairs:
        refuse_unread("objective", one)
    (coefficient, objective), *others = pairs
    if others or coefficient != 1 or not softens(objective):
        return objective if isinstance(objective, Terms) and not others and coefficient == 1 else Terms(pairs)
    return objective


def terms_of(objective: Any) -> tuple[Term, ...]:
    """The terms of an objective; a single objective is one term."""
    return objective.terms if isinstance(objective, Terms) else (Term(LONE, 1.0, objective),)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    first, *others = tensors
    return sum(others, first)


def _names(objectives: Sequence[Any]) -> list[str]:
    """The log name of each objective: its registered name, with a number if it occurs several times."""
    found: list[str] = []
    for objective in objectives:
        own = next((name for name, made in OBJECTIVES.items() if made is type(objective)), None)
        name = own or getattr(objective, "__name__", type(objective).__name__).lower()
        taken = {*found, *LOGGED}
        found.append(name if name not in taken else next(n for k in range(2, 99) if (n := f"{name}_{k}") not in taken))
    return found
