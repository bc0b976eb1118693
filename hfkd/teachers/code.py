"""A hash of the user's own code behind functions and objects, for cache keys, where a name would miss edits.

Library code is not hashed; comparing a few rows with the live teacher detects when a new version changed results.
"""

import ast
import enum
import functools
import inspect
import os
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

FOLDERS = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
# hfkd itself may be installed from a checkout, outside of the library folders
LIBRARIES = tuple(f"{Path(path).resolve()}{os.sep}" for path in {*FOLDERS, str(Path(__file__).parents[1])})
PACKAGES = {"site-packages", "dist-packages"}  # of other folders, such as those of `pip --user`
MOST, LONGEST = 20_000, 1000  # limits on objects and their entries, far above those of transforms
PLAIN = (str, bytes, int, float, bool, complex, type(None), enum.Enum, torch.dtype, torch.device)


def code_hash(*roots: Any) -> str:
    """A hash of all user code reachable from `roots`: functions, classes, their globals, attributes and closures.

    Comments, docstrings and formatting are ignored, and so are objects that cannot be inspected.
    """
    digest, seen, waiting = xxhash.xxh3_64(), dict[int, Any](), list(roots)
    while waiting and len(seen) < MOST:
        found = waiting.pop()
        if isinstance(found, PLAIN):
            digest.update(repr(found).encode())
        elif id(found) not in seen:
            seen[id(found)] = found  # kept, so that no other object gets its id
            digest.update(_text(found).encode())
            waiting += _reached(found)
    return digest.hexdigest()


def users_own(found: Any) -> bool:
    """Whether a function or class is the user's, not a library's."""
    name = getattr(found, "__module__", None) or ""
    return name == "__main__" or _outside(getattr(sys.modules.get(name), "__file__", None))


@functools.cache
def _outside(file: str | None) -> bool:
    """Whether a file is not in an installed package: of this Python, of the user, or of a folder of `pip --target`."""
    if file is None:
        return False
    path = Path(file).resolve()
    if str(path).startswith(LIBRARIES) or not PACKAGES.isdisjoint(path.parts):
        return False
    roots = (root for root in path.parents if str(root) in map(os.path.realpath, sys.path))
    return all(path.relative_to(root).parts[0] not in _installed(str(root)) for root in roots)


@functools.cache
def _installed(folder: str) -> frozenset[str]:
    """The files and folders at the top of the packages that are installed in `folder`; no editable ones."""
    records = [path.read_text(encoding="utf-8") for path in Path(folder).glob("*.dist-info/RECORD")]
    return frozenset(line.split(",")[0].split("/")[0] for record in records for line in record.splitlines())


def _text(found: Any) -> str:
    """The contribution of `found` itself: the source of the user's function or class, else its type."""
    if not isinstance(found, (types.FunctionType, type)):
        return type(found).__qualname__
    if not users_own(found):
        return f"{found.__module__}.{found.__qualname__}"
    try:
        return ast.unparse(_without_docstrings(ast.parse(textwrap.dedent(inspect.getsource(found)))))
    except (OSError, TypeError, SyntaxError, IndentationError):  # created by exec, or a lambda within a line
        return "".join(_bytecode(function.__code__) for function in _functions(found))


def _reached(found: Any) -> list[Any]:
    if isinstance(found, functools.partial):
        return [found.func, found.args, found.keywords]
    if isinstance(found, types.MethodType):
        return [found.__func__, found.__self__]
    if isinstance(found, (types.FunctionType, type)):
        return _reached_by_code(found) if users_own(found) else []
    if isinstance(found, Mapping):
        return [part for entry in islice(found.items(), LONGEST) for part in entry]
    if isinstance(found, (list, tuple)):
        return list(found[:LONGEST])
    if isinstance(found, (set, frozenset)):  # of texts, in another order in each process
        return sorted(found, key=repr)[:LONGEST]
    if isinstance(found, (torch.Tensor, types.ModuleType)) or not hasattr(found, "__dict__"):
        return []
    if isinstance(found, nn.Module):  # its contents are hashed with its weights
        return [type(found)]
    return [type(found), *vars(found).values()]


def _reached_by_code(found: Any) -> list[Any]:
    """Bases of a class; defaults, closures and used globals of functions."""
    reached: list[Any] = [base for base in getattr(found, "__bases__", ()) if users_own(base)]
    for function in _functions(found):
        reached += [function.__defaults__, function.__kwdefaults__]
        for cell in function.__closure__ or ():
            try:
                reached.append(cell.cell_contents)
            except ValueError:  # not filled yet
                continue
        names, known = _names(function.__code__), function.__globals__
        called = [known[name] for name in names if name in known]
        modules = [
            one for one in called if isinstance(one, types.ModuleType) and _outside(getattr(one, "__file__", None))
        ]
        reached += called + [vars(module)[name] for module in modules for name in names if name in vars(module)]
    return reached


def _functions(found: Any) -> list[types.FunctionType]:
    if isinstance(found, types.FunctionType):
        return [found]
    members = [getattr(member, "__func__", getattr(member, "fget", member)) for member in vars(found).values()]
    return [member for member in members if isinstance(member, types.FunctionType)]


def _names(code: types.CodeType) -> Iterable[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return sorted({*code.co_names, *(name for names in inner for name in names)})


def _bytecode(code: types.CodeType) -> str:
    constants = map(_constant, code.co_consts)
    return f"{code.co_code.hex()} {code.co_names} {' '.join(constants)}"


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _bytecode(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node, False):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[index]
    return tree
