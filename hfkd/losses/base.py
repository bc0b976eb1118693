"""The base classes of the three slots (objective, temperature, weighting), and what a slot may require."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from hfkd.losses.context import BuildContext
from hfkd.losses.items import Items
from hfkd.utils.command import without_addresses
from hfkd.utils.feature_keys import feature_keys


@dataclass(frozen=True)
class Requirements:
    """What a slot needs to compute its values.

    A setup that cannot provide it (a chunked loss, a cache, peers, a stream, a batch of one) is refused when the
    trainer is built.

    student, teacher: the inner layers that the slot reads from each network (`hfkd.utils.feature_keys`); integers
    become strings.
    relations: an item's value depends on other items of the batch.
    first_view: the first view of an image is treated differently from the others.
    within_samples: a value depends on the items of one sample only; otherwise it may depend on all items of the batch.
    signals: of the logits, the slot reads energies and entropies only. These are available even for items whose logits
    are not kept.
    epochs: the length of the slot's warm-up in epochs, 0 without one.
    rows: the objective is built from the training rows: their number, their labels, or the teacher's outputs for them.
    index: the slot looks rows up by `Items.index`, so that each needs one of its own.
    labels: the slot reads the items' labels, so that unlabelled rows cannot be distilled with it.
    items, samples: the smallest number of items and of samples in a batch for which the slot is meaningful.
    classes: the smallest number of classes of an item for which it is.
    fixed: those layers of `student` that do not depend on trained parameters, such as the images; all others need a
    gradient.
    """

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    relations: bool = False
    first_view: bool = False
    within_samples: bool = False
    signals: bool = False
    epochs: float = 0
    rows: bool = False
    index: bool = False
    labels: bool = False
    items: int = 1
    samples: int = 1
    classes: int = 1
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
        """The requirements of all of `several` together."""
        found = tuple(several)
        return cls(
            **{field.name: _joined(field.name, [getattr(one, field.name) for one in found]) for field in fields(cls)}
        )


def _joined(name: str, values: list[Any]) -> Any:
    """The joint value of one field: the union of layers, the largest number, or the stricter flag."""
    if isinstance(values[0], tuple):
        return tuple(dict.fromkeys(key for layers in values for key in layers))
    return min(values) if name in ("within_samples", "signals") else max(values)


class Slot(ABC):  # noqa: B024 - what is abstract differs from slot to slot
    """An objective, temperature or weighting that declares what it needs; other callables need nothing."""

    def requirements(self) -> Requirements:
        return Requirements()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of parameters with their own learning rate, `{"params": [...], "lr": ...}`.

        Other settings, such as `weight_decay`, are those of the arguments if a group does not have them.
        """
        return []

    def trained_modules(self) -> list[nn.Module]:
        """The modules with trainable parameters; a slot that wraps others returns theirs."""
        return [self] if isinstance(self, nn.Module) else []


def requirements_of(slot: Any) -> Requirements:
    return slot.requirements() if isinstance(slot, Slot) else Requirements()


class Temperature(Slot):
    """The softmax temperature of each item: `(items) -> T [N]`, above 0. It may be trained (an nn.Module).

    The student's outputs have no gradient there: the student does not learn to change its temperature.
    """

    @abstractmethod
    def __call__(self, items: Items) -> Tensor: ...


class Weighting(Slot):
    """The weight of each item: `(items) -> w [N]`, 0 or more, from raw logits, without gradient."""

    @abstractmethod
    def __call__(self, items: Items) -> Tensor: ...


class Objective(Slot):
    """The distance of the student from the teacher: `(items, T [N]) -> [N]`, one value per item.

    The factor T² is included where the objective softens. It is stateless unless it also derives from nn.Module; then
    its parameters are trained with the student. `divergence`: it is never negative, and zero where the student equals
    the teacher. `softens`: it reads T.
    """

    divergence: bool = True
    softens: bool = True
    level: Literal["item", "sample"] = "item"

    def build(self, context: BuildContext) -> None:
        """Create what depends on the networks, such as connectors.

        Called once on every rank, when the trainer is built, with the layers of both networks that `requirements`
        names. Raises ValueError for layers that cannot be compared.
        """

    @abstractmethod
    def __call__(self, items: Items, temperature: Tensor) -> Tensor:
        """The divergence of each item [N] at that item's temperature [N]; with `level="sample"`, of each sample [S].

        The loss divides by the number of items, or of samples, of the optimizer step. A sample's weight is the mean of
        its items' weights; a sample without items is not counted.
        """

    def relations(self, items: Items, temperature: Tensor) -> Tensor | None:
        """The terms that compare items with each other, attributed to the items [N]; None without such terms.

        They are added to the weighted objective without a weight, because a relation does not belong to a single item.
        Items are compared within one micro-batch, so gradient accumulation and the number of ranks change the result.
        """
        return None

    @property
    def builds(self) -> bool:
        return type(self).build is not Objective.build

    @property
    def has_own_loss(self) -> bool:
        return type(self).own_loss is not Objective.own_loss

    def own_loss(self, items: Items, temperature: Tensor) -> Tensor | None:
        """A scalar, the mean over the batch's items, that trains the objective's own modules; None without any.

        It is scaled by the batch's share of the optimizer step only, neither by `kd_weight` nor by w. It must train
        those modules alone: detach the networks' outputs.
        """
        return None


BASES: dict[str, type[Slot]] = {"objective": Objective, "temperature": Temperature, "weighting": Weighting}
OF_SLOTS = ("requirements", "parameter_groups", "trained_modules")
OF_OBJECTIVES = (*OF_SLOTS, "build", "relations", "own_loss", "level", "softens")


def refuse_unread(name: str, slot: Any) -> None:
    """Raise ValueError for a slot that says something of itself which is read of its base class alone.

    Also for a module that torch cannot have in another one.
    """
    base, kind = BASES[name], type(slot).__name__
    said = [one for one in (OF_OBJECTIVES if base is Objective else OF_SLOTS) if hasattr(slot, one)]
    if said and not isinstance(slot, base):
        raise ValueError(
            f"the {name} {kind} has {', '.join(said)}, which is read of a class derived from "
            f"hfkd.losses.base.{base.__name__} alone: write class {kind}({base.__name__}), or with layers of its own "
            f"class {kind}(nn.Module, {base.__name__})"
        )
    if isinstance(slot, nn.Module) and type(slot).__hash__ is None:
        raise ValueError(
            f"the {name} {kind} is an nn.Module that cannot be hashed, as a dataclass that compares its fields: write "
            "@dataclass(eq=False), or an __init__"
        )


def softens(objective: Any) -> bool:
    """Whether an objective reads the temperature; a callable that does not declare it may."""
    return not isinstance(objective, Objective) or objective.softens


def trained_modules(slot: Any) -> list[nn.Module]:
    """The modules of a slot that may be trained."""
    if isinstance(slot, Slot):
        return slot.trained_modules()
    return [slot] if isinstance(slot, nn.Module) else []


def with_settings(slot: Any) -> str:
    """A slot's repr, by which a resumed run is compared; of a class without a repr, its settings: its plain attributes.

    Several settings would otherwise be the same run, `<Mine object>`.
    """
    own = type(slot).__repr__
    module = own is nn.Module.__repr__ and type(slot).extra_repr is nn.Module.extra_repr
    if own is not object.__repr__ and not module:
        inner = getattr(slot, "_inner", None)  # of a slot that wraps another
        return repr(slot) if inner is None else repr(slot).replace(repr(inner), with_settings(inner))
    return by_attributes(slot, ("training",) if module else ())


def by_attributes(slot: Any, left_out: Sequence[str] = ()) -> str:
    """`Name(key=value)` of an object's plain attributes."""
    settings = {k: v for k, v in getattr(slot, "__dict__", {}).items() if not k.startswith("_") and k not in left_out}
    said = ", ".join(f"{name}={_published(value)!r}" for name, value in settings.items() if _plain(value))
    return f"{type(slot).__name__}({said})"


def in_words(given: Any) -> Any:
    """A slot's argument as files have it: names, numbers and lists of them as they are, other objects by their repr."""
    if isinstance(given, (list, tuple)):
        return [in_words(one) for one in given]
    return given if _plain(given) else without_addresses(with_settings(given))


def _published(value: Any) -> Any:
    """The value for records that may be published: of a local path the last component."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
