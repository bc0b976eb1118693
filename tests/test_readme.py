"""The README says what is there: its example runs, its table lists every method, its files exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hfkd.losses.logits import OBJECTIVES
from hfkd.losses.temperatures import TEMPERATURES
from hfkd.losses.weightings import WEIGHTINGS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
TABLES = {"objective": OBJECTIVES, "temperature": TEMPERATURES, "weighting": WEIGHTINGS}


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
    assert sorted(re.findall(rf"^\|.*\| {kind}: `(\w+)` \|", README, re.MULTILINE)) == sorted(TABLES[kind])


@pytest.mark.parametrize("page", PAGES)
def test_the_links_and_the_named_files_exist(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if "://" not in link]
    named = re.findall(r"\b(?:recipes|accelerate_configs|tests|hfkd)/[\w/]+\.(?:py|yaml)", PAGES[page])
    assert not [path for path in links + named if not (ROOT / path).exists()]


def test_every_hardware_configuration_is_in_its_table():
    listed = re.findall(r"^\| `(\w+\.yaml)` \|", README, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "accelerate_configs").glob("*.yaml"))


def test_the_flags_that_the_readme_names_exist():
    files = [
        *(ROOT / "recipes").glob("*.py"),
        *(ROOT / "hfkd" / "models" / f"{name}.py" for name in ("lora", "pruned_student")),
        *(ROOT / "hfkd" / "commands").glob("*.py"),
        ROOT / "hfkd" / "data" / "text_arguments.py",
    ]
    source = " ".join(path.read_text(encoding="utf-8") for path in files)
    assert not [flag for flag in flags() if not re.search(rf"\b{flag}\b", source) and flag not in known_flags()]


def flags() -> set[str]:
    """Of the recipes; accelerate's own stand in the table of hardware and before the script's name."""
    return set(re.findall(r"(?<![\w-])--([a-z]\w+)", README)) - {
        "config_file",
        "num_processes",
        "machine_rank",
        "main_process_ip",
        "config",
        "help",
    }


def known_flags() -> set[str]:
    from hfkd import DistillationArguments
    from hfkd.data import ImageDataArguments
    from hfkd.data.mask_arguments import MaskDataArguments
    from hfkd.models import NetworkArguments
    from hfkd.models.segmentation_arguments import SegmentationNetworkArguments

    images, masks = (ImageDataArguments, NetworkArguments), (MaskDataArguments, SegmentationNetworkArguments)
    classes = (DistillationArguments, *images, *masks)
    return {name for cls in classes for name in cls.__dataclass_fields__}
