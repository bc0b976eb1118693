"""The registries of objectives, temperatures and weightings by name."""

import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Factory = TypeVar("Factory", bound=Callable[..., Any])

OBJECTIVES: dict[str, Callable[..., Any]] = {}
TEMPERATURES: dict[str, Callable[..., Any]] = {}
WEIGHTINGS: dict[str, Callable[..., Any]] = {}


def register_objective(name: str) -> Callable[[Factory], Factory]:
    """Register an objective by name, for Python, YAML and the command line (`--import` names its module).

        @register_objective("squared")
        class Squared(Objective): ...

    Raises ValueError for a name that is not an identifier, or that is taken.
    """
    return registering(OBJECTIVES, "objective", name)


def register_temperature(name: str) -> Callable[[Factory], Factory]:
    """`register_objective` for temperatures: `(items) -> T [N]`."""
    return registering(TEMPERATURES, "temperature", name)


def register_weighting(name: str) -> Callable[[Factory], Factory]:
    """`register_objective` for weightings: `(items) -> w [N]`."""
    return registering(WEIGHTINGS, "weighting", name)


def registering(table: dict[str, Callable[..., Any]], kind: str, name: str) -> Callable[[Factory], Factory]:
    """The decorator that adds a class to `table`; a class may be registered again when its module is reloaded.

    In a notebook it may have another name then: the cell that had the class before may have been edited.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{kind} name {name!r} cannot be used in a slot: pass a Python identifier")

    def register(factory: Factory) -> Factory:
        there = table.get(name)
        if there is not None and _place(there) != _place(factory):
            was, now = (".".join(_place(one)) for one in (there, factory))
            if not (_in_a_notebook(there) and _in_a_notebook(factory)):
                raise ValueError(f"{kind} {name!r} is taken by {was}: choose another name")
            logger.warning("%s %r is %s from now on, in place of %s.", kind, name, now, was)
        table[name] = factory
        return factory

    return register


def _place(factory: Callable[..., Any]) -> tuple[str, str]:
    return factory.__module__, factory.__qualname__


def _in_a_notebook(factory: Callable[..., Any]) -> bool:
    """Whether a class was typed in a notebook or a console, whose `__main__` is of no file."""
    return factory.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
