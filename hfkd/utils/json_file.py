"""Writing JSON that every reader accepts, whatever numpy, torch or a diverged run put into it."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfkd.utils.files import write_atomically


def write_json(path: str | os.PathLike[str], payload: Any) -> None:
    """Write `payload` as JSON, atomically.

    numpy and torch scalars become numbers, arrays and tensors lists, enums their value, dataclasses objects, paths
    strings. NaN and infinities become `null`: JSON has no word for them, and a run that diverged should still be able
    to record that it did. Anything else is refused with a `ValueError` that names `path` and the place in the payload.
    """
    try:
        plain = jsonable(payload)
    except ValueError as error:
        raise ValueError(f"cannot write {os.fspath(path)!r}: {error}") from error
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(Path(path), text.encode())


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a file that an earlier run wrote. Raises ValueError, naming it, where it holds none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # damaged, or text in another encoding
        raise ValueError(f"{os.fspath(path)} is damaged, or no JSON ({error}): delete it to begin anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{os.fspath(path)} holds a {type(found).__name__}, not named values: delete it to begin anew")
    return found


def jsonable(value: Any, where: str = "payload") -> Any:
    """`value` made of what JSON knows, by the rules of `write_json`; `where` names the place in error messages."""
    if isinstance(value, enum.Enum):
        return jsonable(value.value, where)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, torch.Tensor):
        return jsonable(value.detach().tolist(), where)
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist(), where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: jsonable(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {_key(key, where): jsonable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValueError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: pass a number, string, list or dict"
    )


def _key(key: Any, where: str) -> str:
    if isinstance(key, (str, int)) and not isinstance(key, bool):
        return str(key)
    raise ValueError(f"{where} has the key {key!r} of type {type(key).__name__}: use strings (or integers) as keys")
