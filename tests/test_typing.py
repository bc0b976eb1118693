"""hfkd is typed for its users: what they may pass by the documentation, type checkers accept too."""

import importlib.resources
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typed_program
from toys import Net, Rows, teacher

from hfkd import DistillationTrainer
from hfkd.losses import registry

PROGRAM = Path(typed_program.__file__)


def test_the_typed_program_trains(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.WEIGHTINGS, "halved", typed_program.Halved)  # gone after the test
    typed_program.register()
    assert typed_program.train(Net(), teacher(), Rows(8), tmp_path) > 0


def test_the_package_says_that_it_is_typed_and_its_trainer_names_its_arguments():
    assert (importlib.resources.files("hfkd") / "py.typed").is_file()
    names = list(inspect.signature(DistillationTrainer).parameters)
    assert names[:3] == ["model", "teacher", "args"]
    assert {"objective", "temperature", "weighting"} < set(names)


WRONG = (
    'DistillationArguments("x", temperature=[1])',
    'DistillationArguments("x", weighting=3)',
    "DistillationTrainer(nn.Linear(1, 1), objective=0.5)",
    "DistillationLoss(lambda items: items)",
    "DistillationTrainer().task.nonsense",
)


@pytest.mark.slow
def test_a_type_checker_accepts_the_program_and_finds_what_is_wrong(tmp_path):
    program = tmp_path / "program.py"
    right = PROGRAM.read_text(encoding="utf-8")
    program.write_text(right + "\n".join(WRONG), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROGRAM.parents[1], check=False)
    lines = {int(line) for line in re.findall(r"program\.py:(\d+): error", done.stdout)}
    first = right.count("\n") + 1
    assert lines == set(range(first, first + len(WRONG))), done.stdout + done.stderr
