"""The recipes that run many image runs, as users start them."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from digit_files import flags, save_network, write_digits

RECIPES = Path(__file__).parents[2] / "recipes"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize(("recipe", "flag"), [("reproduce.py", "--seeds"), ("takd.py", "--chain")])
def test_help(recipe, flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [recipe, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(RECIPES / recipe), run_name="__main__")
    assert end.value.code == 0
    assert flag in capsys.readouterr().out


def test_the_tables_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--list", "--output_dir=out", "--use_cpu", "--bf16=no"])
    runpy.run_path(str(RECIPES / "reproduce.py"), run_name="__main__")
    shown = capsys.readouterr().out
    for path in (RECIPES / "tables").glob("*.yaml"):
        assert f"\n{path.stem}: " in f"\n{shown}"


@pytest.mark.slow
def test_a_killed_table_goes_on(tmp_path):
    write_digits(tmp_path / "digits")
    names = {"teacher_name": save_network(tmp_path / "teacher"), "student_name": "cifar_resnet20"}
    schedule = {"num_train_epochs": 6, "max_steps": -1, "eval_strategy": "epoch", "save_strategy": "epoch"}
    table = ["--table=methods_cifar100", "--seeds=1", "--rows", "KD", "EA-KD", f"--output_dir={tmp_path / 'table'}"]
    command = [sys.executable, str(RECIPES / "reproduce.py"), *table, *flags(tmp_path / "digits", **names | schedule)]
    killed = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = tmp_path / "table" / "ea_kd" / "seed42"
    deadline = time.monotonic() + 300
    while not list(run.glob("checkpoint-*/trainer_state.json")):
        assert killed.poll() is None, "the table was finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-4000:]
    assert again.stderr.count("Resuming from") == 1
    results = json.loads((run / "results.json").read_text())
    assert (results["status"], len(results["sessions"]), results["train_steps"]) == ("finished", 2, 18)
    assert results["losses"]["first"]["step"] == 1
    assert "| EA-KD |" in again.stdout
    assert (tmp_path / "table" / "table.md").read_text().strip() in again.stdout
