"""The command `hfkd`: recipes by name, from a checkout and from a wheel; what it lists; what it refuses."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hfkd
from hfkd.commands import main
from hfkd.commands.recipes import RECIPES
from hfkd.losses.registry import OBJECTIVES, TEMPERATURES, WEIGHTINGS
from hfkd.utils.command import TYPED

ROOT = Path(hfkd.__file__).parents[1]


@pytest.fixture
def shell(monkeypatch):
    """What the command changes in its process is put back."""
    monkeypatch.setenv(TYPED, "")
    monkeypatch.setattr(sys, "argv", ["hfkd"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_every_recipe_is_a_command():
    assert {path.stem for path in (ROOT / "recipes").glob("*.py")} == set(RECIPES.values())


def test_the_help_tells_each_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    assert "Segment images" in told
    assert "multi_gpu" in told
    assert all(f"\n  {name} " in told for name in RECIPES)


def test_methods_lists_every_slot_with_its_defaults(capsys):
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert "  dkd(alpha=1.0, beta=8.0, warmup_epochs=20)\n      Zhao et al., CVPR 2022" in told
    for name in (*OBJECTIVES, *TEMPERATURES, *WEIGHTINGS):
        assert f"\n  {name}" in told


def test_env_is_json(capsys):
    assert main(["env"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["hfkd"] is not None


def test_a_recipe_says_what_was_typed(shell, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["image", "--help"])
    assert capsys.readouterr().out.startswith("usage: hfkd image [--config")


def test_a_configuration_of_hfkd_is_found_by_its_name_from_any_folder(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no such file"):
        main(["image", "--config", "no_such_method"])
    with pytest.raises(
        ValueError, match="no_data cannot be read"
    ):  # the names were found, and the data is looked for next
        main(["image", "--config", "pairs/resnet56_resnet20", "kd", "--dataset_name", str(tmp_path / "no_data")])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["imagine"], "invalid choice: 'imagine'"),
        (["env", "--seed", "1"], "env takes no arguments"),
        (["--accelerate", "cpu", "methods"], "methods takes no --accelerate"),
    ],
)
def test_what_is_not_understood_is_named(argv, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(argv)
    assert said in capsys.readouterr().err


def test_an_unknown_configuration_of_accelerate_names_those_there_are(shell):
    with pytest.raises(ValueError, match="--accelerate gpu: there is no such file; those that come with hfkd are cpu,"):
        main(["--accelerate", "gpu", "image"])


def test_the_wheel_has_recipes_and_configurations(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("recipes", "accelerate_configs"):
        there = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")}
        assert {f"hfkd/{path}" for path in there} <= set(names)


@pytest.mark.slow
def test_the_wheel_in_an_environment_of_its_own(wheel, tmp_path):
    """Installed without its dependencies, which it takes from the environment that the tests run in."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    site = next((tmp_path / "venv").glob("lib/*/site-packages"))
    (site / "dependencies.pth").write_text(os.pathsep.join(p for p in sys.path if p.endswith("site-packages")))
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": ""}}
    told = subprocess.run([tmp_path / "venv" / "bin" / "hfkd", "image", "--help"], **run)
    assert told.stdout.startswith("usage: hfkd image"), told.stderr
    flags = ["demo", "--max_steps", "2", "--output_dir", "demo"]
    done = subprocess.run([tmp_path / "venv" / "bin" / "hfkd", "--accelerate", "cpu", *flags], **run)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "demo").rglob("*.html"))
    assert (site / "hfkd" / "recipes" / "digits_demo.py").is_file()
