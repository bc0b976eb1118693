"""Atomic writes and what becomes of values JSON does not know."""

import ast
import enum
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hfkd.utils.files import write_atomically
from hfkd.utils.json_file import read_json, write_json


class Color(enum.Enum):
    RED = "red"


def test_creates_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomically(path, b"old")
    write_atomically(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, function, failure):
    path = tmp_path / "results.json"
    write_json(path, {"value": 1})
    old = path.read_bytes()

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(failure)) as caught:
        write_json(path, {"value": 2})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["results.json"]
    if isinstance(failure, OSError):
        assert str(path) in str(caught.value)
        assert caught.value.errno == 28


def test_unwritable_folder_names_the_path(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="results.json"):
        write_json(tmp_path / "file" / "results.json", {})


def test_values(tmp_path):
    payload = {
        "numpy": np.float32(0.5),
        "integer": np.int64(3),
        "flag": np.bool_(True),
        "torch": torch.tensor(2.5, dtype=torch.bfloat16),
        "vector": torch.arange(3),
        "table": np.ones((1, 2)),
        "path": Path("a/b"),
        "enum": Color.RED,
        "tuple": (1, None),
        4: "integer key",
    }
    write_json(tmp_path / "x.json", payload)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "numpy": 0.5,
        "integer": 3,
        "flag": True,
        "torch": 2.5,
        "vector": [0, 1, 2],
        "table": [[1.0, 1.0]],
        "path": "a/b",
        "enum": "red",
        "tuple": [1, None],
        "4": "integer key",
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), torch.tensor(-math.inf), [1.0, math.nan]])
def test_not_finite_becomes_null(tmp_path, value):
    write_json(tmp_path / "x.json", {"value": value})

    def refuse(constant):
        raise AssertionError(constant)

    loaded = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)["value"]
    assert loaded is None or loaded == [1.0, None]


@pytest.mark.parametrize("payload", [{"a": [object()]}, {"a": {(1, 2): 3}}, {"a": print}])
def test_refusal_names_path_and_place(tmp_path, payload):
    with pytest.raises(ValueError, match=r"x\.json.*payload\['a'\]"):
        write_json(tmp_path / "x.json", payload)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", b'{"a": "\xff"}'])
def test_a_damaged_file_is_named_when_it_is_read(tmp_path, content):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"results.json .*: delete it to start again"):
        read_json(path)


def test_text_is_utf_8_whatever_the_locale_says():
    """A call that names no encoding reads and writes in the locale's."""
    said = []
    for path in (Path(__file__).parents[2] / "hfkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if name in ("read_text", "write_text") or (name == "open" and not any("b" in mode for mode in modes)):
                said.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    of_bytes = (" os.open(", " Image.open(")
    assert [line for line in said if not any(call in line for call in of_bytes)] == []
