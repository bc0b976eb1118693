"""A hash that changes with what the user's code does, and with nothing else."""

import functools
import importlib
import sys

import pytest
import torch
from torchvision.transforms import v2

from hfkd.data.transforms import ImageTransform
from hfkd.teachers.code import code_hash, users_own

SOURCE = '''
import torch
import helpers
FACTOR = 2.0

def scaled(x):
    return FACTOR * x

def collate(rows):
    """Rows to a batch."""
    return {"pixel_values": torch.stack([scaled(row) for row in rows]), "labels": helpers.labels(rows)}

class Crop:
    def __init__(self, size):
        self.size = size

    def __call__(self, rows):
        return [row[: self.size] for row in rows]

    @staticmethod
    def name():
        return "crop"
'''
HELPERS = "def labels(rows):\n    return [0 for _ in rows]\n"


def test_a_set_counts_by_its_members_in_any_order():
    """Sets of texts have another order in each process; so have these numbers, by which came first."""
    made = [eval(f"lambda x: x in {members}") for members in ("{0, 8}", "{8, 0}", "{0, 16}")]  # without a source
    assert code_hash(made[0]) == code_hash(made[1]) != code_hash(made[2])
    given = [functools.partial(print, members) for members in ({0, 8}, {8, 0}, {0, 16})]
    assert code_hash(given[0]) == code_hash(given[1]) != code_hash(given[2])


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Imports the module from `source`, as another process would that starts after it was edited."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(source=SOURCE, helpers=HELPERS):
        (tmp_path / "users.py").write_text(source)
        (tmp_path / "helpers.py").write_text(helpers)
        for name in ("users", "helpers"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        sys.path_importer_cache.clear()
        import linecache

        linecache.clearcache()
        return importlib.import_module("users")

    yield load
    for name in ("users", "helpers"):
        sys.modules.pop(name, None)


EDITS = {
    "a constant that it names": SOURCE.replace("FACTOR = 2.0", "FACTOR = 3.0"),
    "a function that it calls": SOURCE.replace("FACTOR * x", "FACTOR * x + 1"),
    "its own lines": SOURCE.replace("torch.stack([", "torch.stack([1 - "),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_function_is_another(module, what):
    before = code_hash(module().collate)
    assert code_hash(module(EDITS[what]).collate) != before
    assert code_hash(module().collate) == before


def test_what_it_calls_in_another_module_counts(module):
    before = code_hash(module().collate)
    assert code_hash(module(helpers=HELPERS.replace("0 for", "1 for")).collate) != before


def test_comments_docstrings_and_layout_do_not_count(module):
    before = code_hash(module().collate)
    edited = SOURCE.replace('"""Rows to a batch."""', '"""Other words."""\n    # a remark\n').replace("x)", "x )")
    assert code_hash(module(edited).collate) == before


def test_an_edited_class_and_other_settings_are_others(module):
    before = code_hash(module().Crop(4))
    assert code_hash(module().Crop(4)) == before
    assert code_hash(module().Crop(5)) != before
    assert code_hash(module(SOURCE.replace("[: self.size]", "[self.size :]")).Crop(4)) != before
    assert code_hash(module(SOURCE.replace('return "crop"', 'return "cut"')).Crop(4)) != before


def test_it_looks_into_closures_partials_methods_and_lists(module):
    def around(function):
        return lambda rows: function(rows)

    first, edited = module(), None
    wrapped = [around(first.collate), functools.partial(first.collate), [first.collate], v2.Lambda(first.scaled)]
    bound = first.Crop(4).__call__
    before = [code_hash(one) for one in (*wrapped[:3], bound)]
    edited = module(SOURCE.replace("FACTOR * x", "x").replace("[: self.size]", "[1:]"))
    after = [around(edited.collate), functools.partial(edited.collate), [edited.collate], edited.Crop(4).__call__]
    assert all(code_hash(one) != old for one, old in zip(after, before, strict=True))


def test_a_function_without_a_source_counts_by_what_it_does():
    space = {"__name__": "__main__"}
    made = []
    for body in ("x + 1", "x + 2", "x + 1"):
        exec(f"def f(x):\n    return {body}", space)
        made.append(code_hash(space["f"]))
    assert made[0] == made[2] != made[1]


def test_packages_outside_of_this_pythons_folders_are_libraries_too(tmp_path, monkeypatch):
    """Those of `pip --user`, of a system below a virtual environment, of `pip --target`: transformers was hashed."""
    folders = {"target": "parts", "user/site-packages": "of_user", "project": "own"}
    for folder, name in folders.items():
        (tmp_path / folder / f"{name}_hashed").mkdir(parents=True)
        (tmp_path / folder / f"{name}_hashed" / "__init__.py").write_text("def apply(x):\n    return x\n")
        monkeypatch.syspath_prepend(tmp_path / folder)
    (tmp_path / "target" / "mine_hashed.py").write_text("def apply(x):\n    return x\n")
    record = tmp_path / "target" / "parts-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("parts_hashed/__init__.py,sha256=x,30\nparts-1.0.dist-info/RECORD,,\n")
    names = [f"{name}_hashed" for name in (*folders.values(), "mine")]
    owned = {name: users_own(importlib.import_module(name).apply) for name in names}
    assert owned == dict(zip(names, (False, False, True, True), strict=True))
    for name in names:
        monkeypatch.delitem(sys.modules, name)


def test_libraries_are_their_versions():
    assert not users_own(torch.stack)
    assert not users_own(ImageTransform)
    assert not users_own(v2.Compose)
    assert users_own(test_libraries_are_their_versions)
    assert code_hash(ImageTransform(augment=True)) == code_hash(ImageTransform(augment=True))
    assert code_hash(ImageTransform(augment=True)) != code_hash(ImageTransform(augment=False))
