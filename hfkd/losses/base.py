"""What the three slots are, and what each may ask for beyond its items' own logits."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor, nn

from hfkd.losses.context import BuildContext
from hfkd.losses.items import Items
from hfkd.utils.feature_keys import feature_keys


@dataclass(frozen=True)
class Requirements:
    """What a slot needs. Whatever cannot serve it (a chunked loss, a cache, peers, a stream, a batch of one) refuses by
    this, when the trainer is built.

    student, teacher: the inner layers that it reads of each network (`hfkd.utils.feature_keys`); whole numbers become
    strings.
    relations: an item's number depends on other items of the batch.
    first_view: an image's first view is not treated as the others are.
    within_samples: it looks at no more than one sample at a time; otherwise at all items of the batch.
    signals: of logits it asks for energies and entropies alone, which are known of items whose logits are not there.
    epochs: how many its warm-up lasts, if it has one.
    rows: what it builds is made from the training rows: their number, their labels, what the teacher gives for them.
    labels: it reads the items' labels, which rows that are distilled without have none of.
    items, samples: how many of these a batch must have for it to say something.
    fixed: those of `student` that nothing which trains has a part in, such as images; any other is to have a gradient.
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    relations: bool = False
    first_view: bool = False
    within_samples: bool = False
    signals: bool = False
    epochs: float = 0
    rows: bool = False
    labels: bool = False
    items: int = 1
    samples: int = 1
    fixed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "fixed", feature_keys(self.fixed))
        object.__setattr__(self, "student", feature_keys(self.student))
        object.__setattr__(self, "teacher", feature_keys(self.teacher))

    @property
    def features(self) -> tuple[str, ...]:
        return self.student + self.teacher

    @classmethod
    def joined(cls, several: "Iterable[Requirements]") -> "Requirements":
        """What serves all of `several`."""
        found = tuple(several)
        return cls(
            **{field.name: _joined(field.name, [getattr(one, field.name) for one in found]) for field in fields(cls)}
        )


def _joined(name: str, values: list[Any]) -> Any:
    """What serves all: layers of any, the largest number, whatever one of them needs."""
    if isinstance(values[0], tuple):
        return tuple(dict.fromkeys(key for layers in values for key in layers))
    return min(values) if name in ("within_samples", "signals") else max(values)


class Slot(ABC):  # noqa: B024 - what is abstract differs from slot to slot
    """An objective, temperature or weighting that says what it needs. Any other callable needs nothing."""

    def requirements(self) -> Requirements:
        return Requirements()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What trains at a rate of its own: groups of the student's optimizer, `{"params": [...], "lr": ...}`."""
        return []

    def trained_modules(self) -> list[nn.Module]:
        """What of it may train; a slot around others hands theirs on."""
        return [self] if isinstance(self, nn.Module) else []


def requirements_of(slot: Any) -> Requirements:
    return slot.requirements() if isinstance(slot, Slot) else Requirements()


class Temperature(Slot):
    """How much each item is softened: `(items) -> T [N]`, above 0. It may learn (an nn.Module)."""

    @abstractmethod
    def __call__(self, items: Items) -> Tensor: ...


class Weighting(Slot):
    """How much each item counts: `(items) -> w [N]`, 0 or more, on raw logits, without gradient."""

    @abstractmethod
    def __call__(self, items: Items) -> Tensor: ...


class Objective(Slot):
    """How far the student is from the teacher: `(items, T [N]) -> [N]`, one number an item.

    T² is included where it softens. Stateless unless it also derives from nn.Module; then its parameters train with
    the student. `divergence`: it is zero where the student equals the teacher, and never below. `softens`: it reads T.
    """

    divergence: bool = True
    softens: bool = True
    level: Literal["item", "sample"] = "item"

    def build(self, context: BuildContext) -> None:
        """Make what depends on the networks, such as connectors. Raises ValueError for layers that do not go together.

        Called once on every rank, when the trainer is built, with the networks' layers that `requirements` names.
        """

    @abstractmethod
    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        """The divergence of each item [N], at that item's temperature [N]; of each sample [S] at `level="sample"`.

        The loss divides by the step's items, or its samples. A sample's weight is the mean of its items'; one without
        items counts nowhere.
        """

    def relations(self, items: Items, temperature: Tensor) -> Tensor | None:
        """What comes of comparing items with each other, shared out among them [N]; None without such terms.

        Added to the weighted objective as it is: a relation belongs to no single item, so no item's weight applies.
        Items are compared within the batch at hand, so accumulation and ranks change it.
        """
        return None

    @property
    def builds(self) -> bool:
        return type(self).build is not Objective.build

    @property
    def has_own_loss(self) -> bool:
        return type(self).own_loss is not Objective.own_loss

    def own_loss(self, items: Items, temperature: Tensor) -> Tensor | None:
        """A scalar, the mean over the batch's items, that trains the objective's own parts; None without any.

        Added as it is, by the batch's share of the step: it takes neither `kd_weight` nor w, and moves only those
        parts (detach what the networks gave).
        """
        return None


def softens(objective: Any) -> bool:
    """Whether it reads the temperature; a callable that does not say may."""
    return not isinstance(objective, Objective) or objective.softens


def trained_modules(slot: Any) -> list[nn.Module]:
    """What of a slot may train."""
    if isinstance(slot, Slot):
        return slot.trained_modules()
    return [slot] if isinstance(slot, nn.Module) else []
