"""Types of slot arguments: values are checked against the annotations when a slot is built.

    @checked
    @dataclass
    class DKD(Objective):
        beta: NotNegative = 8.0

Therefore `dkd(beta=True)`, `DKD(beta="x")` and `DKD(beta=-1)` raise the same ValueError.
"""

import functools
import inspect
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np


@dataclass(frozen=True)
class Range:
    """A range of finite numbers, and its description in messages."""

    words: str
    holds: Callable[[float], bool]

    def __repr__(self) -> str:  # shown in signatures
        return self.words


Positive = Annotated[float, Range("a finite number above 0", lambda x: x > 0)]
NotNegative = Annotated[float, Range("a finite number of 0 or more", lambda x: x >= 0)]
Share = Annotated[float, Range("a number from 0 to 1", lambda x: 0 <= x <= 1)]
# Beyond this range, float32 cannot resolve differences of logits, or the softmax is degenerate.
SoftmaxTemperature = Annotated[float, Range("a number from 0.001 to 10000", lambda x: 1e-3 <= x <= 1e4)]
Count = Annotated[int, Range("a whole number above 0", lambda x: x > 0)]

Class = TypeVar("Class", bound=type)


def checked(cls: Class) -> Class:
    """Decorate a class so that its constructor checks its arguments by their annotations, and raises ValueError."""
    plain = cls.__init__  # type: ignore[misc]
    signature, hints = inspect.signature(plain), get_type_hints(plain, include_extras=True)

    @functools.wraps(plain)
    def construct(self: Any, *arguments: Any, **keywords: Any) -> None:
        given = signature.bind(self, *arguments, **keywords)
        for name, value in given.arguments.items():
            if name in hints:
                given.arguments[name] = fitting(type(self).__name__, name, value, hints[name])
        plain(*given.args, **given.kwargs)

    cls.__init__ = construct  # type: ignore[misc]
    return cls


def fitting(owner: str, name: str, value: Any, kind: Any) -> Any:
    """`value`, if the annotation `kind` allows it. Raises ValueError otherwise.

    Lists are converted to tuples, and numpy numbers to Python numbers.
    """
    if (fits := _fit(value, kind)) is _NOTHING:
        raise ValueError(f"{owner}: {name}={value!r} must be {_words(kind)}")
    return fits


_NOTHING = object()


def _fit(value: Any, kind: Any) -> Any:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return next((fits for part in parts if (fits := _fit(value, part)) is not _NOTHING), _NOTHING)
    if origin is Annotated:
        fits = _fit(value, parts[0])
        return fits if fits is not _NOTHING and all(limit.holds(fits) for limit in parts[1:]) else _NOTHING
    if origin is Literal:
        return value if isinstance(value, str) and value in parts else _NOTHING
    if origin is tuple:
        return _fit_tuple(value, parts)
    if origin is dict:
        return _fit_dict(value, *parts)
    value = value.item() if isinstance(value, np.generic) else value
    tests = {
        bool: isinstance(value, bool),
        int: isinstance(value, Integral) and not isinstance(value, bool),
        float: isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value),
        str: isinstance(value, str),
        type(None): value is None,
    }
    return value if tests.get(kind, True) else _NOTHING


def _fit_tuple(value: Any, parts: tuple[Any, ...]) -> Any:
    if not isinstance(value, (tuple, list)):
        return _NOTHING
    kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
    if len(kinds) != len(value):
        return _NOTHING
    fits = tuple(_fit(one, kind) for one, kind in zip(value, kinds, strict=True))
    return _NOTHING if _NOTHING in fits else fits


def _fit_dict(value: Any, key: Any, held: Any) -> Any:
    if not isinstance(value, dict):
        return _NOTHING
    keys, values = _fit_tuple(tuple(value), (key, ...)), _fit_tuple(tuple(value.values()), (held, ...))
    return _NOTHING if _NOTHING in (keys, values) else dict(zip(keys, values, strict=True))


def _words(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return ", or ".join(map(_words, parts))
    if origin is Annotated:
        return parts[1].words
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple and parts[0] is str:
        return "a tuple of strings"
    if origin is tuple:
        return f"a tuple of {'' if parts[-1] is Ellipsis else f'{len(parts)} '}numbers, each {_words(parts[0])}"
    if origin is dict:
        return f"a dict from {' to '.join(map(_words, parts))}"
    names = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a string"}
    return names.get(kind, "None" if kind is type(None) else str(kind))
