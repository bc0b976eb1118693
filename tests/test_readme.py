"""README and docs say what is there: the example runs, the tables list every method, files and flags exist."""

import importlib
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.temperatures import TEMPERATURES
from hfkd.losses.weightings import WEIGHTINGS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS)
}
TABLES = {
    "Objectives on logits": [name for name, slot in OBJECTIVES.items() if ".features." not in slot.__module__],
    "Objectives on features": [name for name, slot in OBJECTIVES.items() if ".features." in slot.__module__],
    "Temperatures": TEMPERATURES,
    "Weightings": WEIGHTINGS,
}


def example() -> str:
    return re.search(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)[1]


def test_the_example_runs_as_written(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "example.py").write_text(example(), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert 0.5 < float(run.stdout.split()[-1]) <= 1
    assert (tmp_path / "digits" / "student" / "distillation.json").is_file()


def test_the_example_has_fifteen_lines():
    assert len([line for line in example().splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("kind", TABLES)
def test_the_table_of_methods_has_every_name_of_the_slot_and_no_other(kind):
    section = PAGES["docs/methods.md"].split(f"## {kind}\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", section, re.MULTILINE)) == sorted(TABLES[kind])


def test_the_settings_of_a_method_exist():
    named = re.findall(r"`(\w+\.yaml)` \|$", PAGES["docs/methods.md"], re.MULTILINE)
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / "recipes" / "configs" / name).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_the_links_and_the_named_files_exist(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^) ]+)\)", text) if "://" not in link]
    folder = (ROOT / page).parent  # the site makes a page of each notebook
    assert not [
        link for link in links if not any((folder / name).exists() for name in (link, re.sub(r"md$", "ipynb", link)))
    ]
    named = re.findall(r"\b(?:recipes|accelerate_configs|tests|hfkd)/[\w/]+\.(?:py|yaml)", PAGES[page])
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_hardware_configuration_is_in_its_table():
    listed = re.findall(r"^\| `(\w+\.yaml)` \|", PAGES["docs/hardware.md"], re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "accelerate_configs").glob("*.yaml"))


def test_the_flags_that_are_named_exist():
    files = [path for name in ("recipes", "benchmarks", "hfkd/commands") for path in (ROOT / name).glob("*.py")]
    source = " ".join(path.read_text(encoding="utf-8") for path in files)
    assert not [flag for flag in flags() - known_flags() if not re.search(rf"\b{flag}\b", source)]


def flags() -> set[str]:
    """Of the recipes; accelerate's own stand in the table of hardware and before the script's name."""
    told = ["README.md", *(name for name in DOCS if re.match(r"docs/(tasks/\w+|\w+)\.md", name))]
    return set(re.findall(r"(?<![\w-])--([a-z]\w+)", " ".join(PAGES[name] for name in told))) - {
        "config_file",
        "num_processes",
        "machine_rank",
        "main_process_ip",
        "config",
        "help",
    }


def known_flags() -> set[str]:
    """The fields of every dataclass of arguments."""
    files = [
        path
        for path in (ROOT / "hfkd").rglob("*.py")
        if re.search(r"\bhelp\b|\bflag\(", path.read_text(encoding="utf-8"))
    ]
    modules = [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in files]
    classes = [found for module in modules for found in vars(module).values() if isinstance(found, type)]
    return {field.name for found in classes if is_dataclass(found) for field in fields(found)}
