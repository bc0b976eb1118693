"""Writing of standard JSON, also for numpy and torch values, NaN and infinity."""

import dataclasses
import enum
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfkd.utils.files import write_atomically


def write_json(path: str | os.PathLike[str], payload: Any) -> None:
    """Write `payload` as JSON, atomically.

    numpy and torch scalars become numbers, arrays and tensors lists, enums their values, dataclasses objects, and paths
    strings. NaN and infinity become `null`, because JSON does not support them, and a diverged run should still be
    recorded. Other values raise a `ValueError` that names `path` and the place in the payload.
    """
    try:
        plain = jsonable(payload)
    except ValueError as error:
        raise ValueError(f"cannot write {os.fspath(path)!r}: {error}") from error
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(Path(path), text.encode())


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows as JSON lines in UTF-8, one object each."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file of an earlier run. Raises ValueError if the file has no JSON object."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # damaged, or text in another encoding
        raise ValueError(f"{os.fspath(path)} is damaged, or not JSON ({error}): delete it to start again") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{os.fspath(path)} holds a {type(found).__name__} instead of an object: delete it to start again"
        )
    return found


def json_if_any(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """`read_json`; None without the file, and for one that is damaged or has no JSON object."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def jsonable(value: Any, where: str = "payload") -> Any:
    """`value` in JSON types, by the rules of `write_json`; `where` names the place in error messages."""
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
        f"{where} is a {type(value).__name__}, which JSON does not support: pass a number, string, list or dict"
    )


def _key(key: Any, where: str) -> str:
    if isinstance(key, (str, int)) and not isinstance(key, bool):
        return str(key)
    raise ValueError(f"{where} has the key {key!r} of type {type(key).__name__}: use strings (or integers) as keys")
