"""constraints-oldest.txt has the lower bounds of pyproject.toml, so that `make test-oldest` tests what is promised."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for text in wanted:
        requirement = Requirement(text)
        bounds = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        if bounds:
            yield requirement.name, bounds[0]


def test_the_oldest_versions_are_the_lower_bounds_of_pyproject():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = dict(line.split("==") for line in lines if not line.startswith("#"))
    bounds = dict(lower_bounds())
    assert {name: bounds[name] for name in oldest} == {name: Version(v) for name, v in oldest.items()}
    assert {"torch", "transformers", "accelerate", "datasets", "timm", "peft"} <= oldest.keys()
