"""How a slot's argument becomes a callable: a name, `name(key=literal, ...)`, or any callable."""

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

MAX_SPEC_LENGTH = 500  # a slot is a line in a YAML file; anything longer is not one


def resolve(spec: Any, table: Mapping[str, Callable[..., Any]], kind: str) -> Any:
    """Turn what a user wrote into the callable of a slot.

    `spec` is a callable (returned as it is), or a string: `"dkd"` or `"dkd(beta=8.0, warmup_epochs=0)"`. The string is
    parsed, never evaluated: a name out of `table` and keyword literals, nothing else. `kind` names the slot in errors.
    Raises ValueError with the value, the reason and the choices.
    """
    if callable(spec) and not isinstance(spec, type):
        return spec
    if isinstance(spec, type):
        raise ValueError(f"{kind} {spec.__name__} is a class: pass an instance, {spec.__name__}(...)")
    if not isinstance(spec, str):
        raise ValueError(f"{kind} {spec!r} is a {type(spec).__name__}: pass one of {sorted(table)}, or a callable")
    name, keywords = _parse(spec, kind)
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"unknown {kind} {name!r}{hint}: pass one of {sorted(table)}, or a callable")
    return _build(table[name], name, keywords, kind)


def _parse(spec: str, kind: str) -> tuple[str, dict[str, Any]]:
    malformed = ValueError(
        f"{kind} {spec[:80]!r} cannot be read: write name or name(key=value, ...), with numbers, strings, "
        "True, False, None or tuples of them as values"
    )
    if len(spec) > MAX_SPEC_LENGTH:
        raise malformed
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args):
            raise malformed
        # A keyword without a name is **mapping.
        keywords = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords if k.arg is not None}
        if len(keywords) != len(tree.keywords):
            raise malformed
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise malformed from None
    return tree.func.id, keywords


def _build(factory: Callable[..., Any], name: str, keywords: dict[str, Any], kind: str) -> Any:
    known = inspect.signature(factory).parameters
    unknown = [k for k in keywords if k not in known]
    if unknown:
        raise ValueError(f"{kind} {name!r} has no argument {unknown[0]!r}: it takes {list(known) or 'none'}")
    try:
        return factory(**keywords)
    except TypeError as error:  # a value of the wrong kind, such as beta="x"
        raise ValueError(f"{kind} {name}: an argument has the wrong kind of value ({error})") from error


def positive(owner: str, **values: float) -> None:
    """Raise ValueError unless each of `values` is a finite number above zero."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(f"{owner}: {name}={value!r} must be a number above 0")
