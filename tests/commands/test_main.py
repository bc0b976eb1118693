"""The command `hfkd`: recipes by name, from a checkout and from a wheel; what it lists; what it refuses."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from recipe_toys import (
    classified_flags,
    given,
    image_flags,
    masked_flags,
    results,
    small_boxes,
    small_masks,
    text_flags,
    write_toys,
)

import hfkd
from hfkd.commands import main
from hfkd.commands.recipes import RECIPES
from hfkd.losses.registry import OBJECTIVES, TEMPERATURES, WEIGHTINGS
from hfkd.utils.command import TYPED
from hfkd.utils.command_line_error import CommandLineError

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
    assert "Semantic segmentation" in told
    assert "multi_gpu" in told
    assert all(f"\n  {name} " in told for name in RECIPES)


WITHOUT_LIBRARIES = """
import subprocess, sys
from types import SimpleNamespace
from hfkd.commands import main

subprocess.run = lambda command: SimpleNamespace(returncode=7)
for words in (["--help"], ["--version"], ["imagine"], ["env", "--help"]):
    try:
        main(words)
    except SystemExit:
        pass
assert main(["--accelerate", "cpu", "image", "--seed", "1"]) == 7
print(sorted({"torch", "transformers", "datasets", "timm", "numpy"} & sys.modules.keys()))
"""


def test_the_help_and_a_launcher_do_not_wait_for_libraries():
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIBRARIES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_each_public_name_is_there_when_it_is_asked_for():
    assert {*hfkd.__all__} == {*hfkd.MODULES} < {*dir(hfkd)}
    for name in hfkd.__all__:
        assert getattr(hfkd, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'hfkd' has no attribute 'DistilationTrainer'"):
        hfkd.DistilationTrainer  # noqa: B018


def test_folders_of_the_package_are_there_after_its_import_alone():
    used = "import hfkd; print(hfkd.models.without_adapters.__name__, hfkd.teachers.FrozenTeacher.__name__)"
    done = subprocess.run([sys.executable, "-c", used], capture_output=True, text=True, check=True)
    assert done.stdout == "without_adapters FrozenTeacher\n"


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
    told = capsys.readouterr().out
    assert told.startswith("usage: hfkd image [--config")
    assert "\n    accelerate launch recipes/cifar100_energy_kd.py --teacher_checkpoint wrn_40_2.pth\n" in told


@pytest.mark.parametrize("command", ["methods", "env"])
def test_every_command_has_a_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: hfkd {command}\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp936"])
def test_what_a_terminal_cannot_show_is_a_question_mark(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert main(["methods"]) == 0
    sys.stdout.flush()
    assert "Hinton et al. 2015: T_n? KL(p_n || q_n)" in sys.stdout.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("words", [["--accelerate", "cpu"], ["--accelerate=cpu"]])
def test_the_launcher_behind_the_command_is_refused(words):
    with pytest.raises(
        CommandLineError, match="^--accelerate comes before the command: hfkd --accelerate CONFIG image"
    ):
        main(["image", *words])


def test_a_configuration_of_hfkd_is_found_by_its_name_from_any_folder(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="this file does not exist"):
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
    with pytest.raises(
        CommandLineError, match="--accelerate gpu: no such file; pass a path, or one of those that come with hfkd: cpu,"
    ):
        main(["--accelerate", "gpu", "image"])


def test_the_wheel_has_recipes_and_configurations(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("recipes", "accelerate_configs"):
        there = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")}
        assert {f"hfkd/{path}" for path in there} <= set(names)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """`hfkd` as typed, from the wheel in an environment of its own, and what runs it outside of the tree.

    Installed without its dependencies, which it takes from the environment that the tests run in.
    """
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    site = next(venv.glob("lib/*/site-packages"))
    (site / "dependencies.pth").write_text(os.pathsep.join(p for p in sys.path if p.endswith("site-packages")))
    environment = os.environ | {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def hfkd_typed(folder, *words):
        command = [str(venv / "bin" / "hfkd"), *map(str, words)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    return hfkd_typed, site


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("toys") / "small")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("methods", "dkd(alpha"),
        pytest.param("--help", "Semantic segmentation", marks=pytest.mark.slow),
        pytest.param("env", "versions", marks=pytest.mark.slow),
    ],
)
def test_the_wheel_tells_what_it_has(installed, tmp_path, word, told):
    done = installed[0](tmp_path, word)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


@pytest.mark.slow
def test_the_demo_out_of_the_wheel(installed, tmp_path):
    hfkd_typed, site = installed
    quick = given(max_steps=2, seeds=1, teacher_epochs=1, output_dir="demo", report_to="none")
    done = hfkd_typed(tmp_path, "--accelerate", "cpu", "demo", *quick)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "demo").rglob("*.html"))
    assert (site / "hfkd" / "recipes" / "digits_demo.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image", "text", "classify-text", "masked-lm", "segment", "detect"])
def test_a_run_of_each_task_out_of_the_wheel(installed, small, tmp_path, task):
    if task == "detect":
        pytest.importorskip("pycocotools")
    out = tmp_path / "run"
    flags = {
        "image": lambda: image_flags(small, out, max_steps=2, labelled_images=20),
        "text": lambda: text_flags(small, out),
        "classify-text": lambda: classified_flags(small, out, max_steps=2),
        "masked-lm": lambda: [*masked_flags(small, out), "--text_columns=text", "--max_steps=2"],
        "segment": lambda: [*small_masks(small, ["--teacher_name"]), f"--output_dir={out}"],
        "detect": lambda: [*small_boxes(small, []), f"--output_dir={out}"],
    }
    done = installed[0](tmp_path, task, *flags[task]())
    assert done.returncode == 0, done.stderr[-3000:]
    assert results(out)["status"] == "finished"
    assert (out / "model.safetensors").is_file()
