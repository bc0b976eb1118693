"""Resolution of slot arguments: a name, `name(key=literal, ...)`, a callable, or a sum of these."""

import ast
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from hfkd.utils.messages import did_you_mean

MAX_SPEC_LENGTH = 500  # longer strings are refused
MAX_SUM_LENGTH = 4 * MAX_SPEC_LENGTH


def resolve(spec: Any, table: Mapping[str, Callable[..., Any]], kind: str) -> Any:
    """The callable of a slot from a user's argument.

    `spec` is a callable (returned unchanged), or a string: `"dkd"` or `"dkd(beta=8.0, warmup_epochs=0)"`. The string is
    parsed, never evaluated: only a name in `table` and keyword literals are allowed. `kind` names the slot in errors.
    Raises ValueError for an unknown name or invalid arguments.
    """
    if callable(spec) and not isinstance(spec, type):
        return spec
    if isinstance(spec, type):
        raise ValueError(f"{kind} {spec.__name__} is a class: pass an instance, {spec.__name__}(...)")
    if not isinstance(spec, str):
        raise ValueError(f"{kind} {spec!r} is a {type(spec).__name__}: pass one of {sorted(table)}, or a callable")
    return _named(*_parse(spec, kind), table, kind)


def resolve_sum(spec: Any, table: Mapping[str, Callable[..., Any]], kind: str) -> list[tuple[float, Any]]:
    """`resolve` for a sum of slots, each with its coefficient: [(1.0, KD()), (100.0, FitNet(layer='2'))].

    `spec` is an argument of `resolve`; a string with coefficients, `"kd + 100 * fitnet(layer=2)"`; or a list of these
    and of pairs `(coefficient, slot)`. Raises ValueError for a coefficient that is not a finite number above 0.
    """
    if isinstance(spec, str) and set("+-*/") & set(spec):
        return [(c, resolve(ast.unparse(node), table, kind)) for c, node in _addends(spec, kind)]
    if not isinstance(spec, (list, tuple)):
        return [(1.0, resolve(spec, table, kind))]
    if not spec:
        raise ValueError(f"{kind} {spec!r} is empty: pass at least one term")
    if isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[0], Real):
        spec = [spec]
    found = []
    for one in spec:
        pair = isinstance(one, (list, tuple)) and len(one) == 2 and isinstance(one[0], Real)
        factor, inner = (_coefficient(one[0], kind), one[1]) if pair else (1.0, one)
        if isinstance(inner, (list, tuple)):
            raise ValueError(f"{kind} term {one!r} is not valid: pass a slot, or a pair (coefficient, slot)")
        found += [(factor * c, slot) for c, slot in resolve_sum(inner, table, kind)]
    return found


def _addends(spec: str, kind: str) -> list[tuple[float, ast.expr]]:
    """The addends of "a + 2 * b(c=3)": coefficients, and names or calls."""
    malformed = ValueError(
        f"{kind} {spec[:80]!r} cannot be read: write terms as name or name(key=value, ...), with optional "
        "coefficients before them and + between them: kd + 100 * fitnet(layer=2)"
    )
    if len(spec) > MAX_SUM_LENGTH:
        raise malformed
    try:
        node: ast.expr = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise malformed from None
    addends: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        addends.append(node.right)
        node = node.left
    found: list[tuple[float, ast.expr]] = []
    for one in (node, *reversed(addends)):
        coefficient: Any = 1.0
        if isinstance(one, ast.BinOp) and isinstance(one.op, ast.Mult):
            sides = (one.left, one.right)
            one = next((side for side in sides if isinstance(side, (ast.Name, ast.Call))), one)
            coefficient = _number(next((side for side in sides if side is not one), one))
        if not isinstance(one, (ast.Name, ast.Call)) or coefficient is None:
            raise malformed
        found.append((_coefficient(coefficient, kind), one))
    return found


def _number(node: ast.expr) -> Any:
    """The number in the expression; None for any other expression."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _coefficient(value: Any, kind: str) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or not value > 0:
        raise ValueError(
            f"{kind}: the coefficient {value!r} of a term must be a finite number above 0; for 0, leave the term out"
        )
    return float(value)


def _named(name: str, keywords: dict[str, Any], table: Mapping[str, Callable[..., Any]], kind: str) -> Any:
    if name not in table:
        hint = did_you_mean(name, table)
        raise ValueError(
            f"unknown {kind} {name!r}{hint}: pass one of {sorted(table)}, or a callable; one of your own has a name "
            "once its module is imported (--import)"
        )
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


def _given(factory: Callable[..., Any], name: str, missing: Sequence[str]) -> str:
    """How to give the arguments that a slot lacks."""
    if not inspect.isfunction(factory):
        return f"write {name}({', '.join(f'{one}=...' for one in missing)})"
    return (
        "what is registered is called with the settings alone, and returns the slot; register a class whose instances "
        f"are called with the items, or pass the function itself ({factory.__name__}) instead of its name"
    )


def _build(factory: Callable[..., Any], name: str, keywords: dict[str, Any], kind: str) -> Any:
    known = inspect.signature(factory).parameters
    unknown = [k for k in keywords if k not in known]
    if unknown:
        raise ValueError(f"{kind} {name!r} has no argument {unknown[0]!r}: it takes {list(known) or 'none'}")
    fixed = (p for p in known.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    if missing := [p.name for p in fixed if p.name not in keywords]:
        raise ValueError(f"{kind} {name!r} needs a value of {missing[0]!r}: {_given(factory, name, missing)}")
    try:
        return factory(**keywords)
    except TypeError as error:  # a value of the wrong type, such as beta="x"
        raise ValueError(f"{kind} {name}: an argument has the wrong type ({error})") from error
