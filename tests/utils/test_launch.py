"""Processes that were launched together and work apart are refused, and so is what the launcher keeps to itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys import Net, Rows, arguments, teacher

import hfkd.utils.launch
from hfkd import DistillationArguments, DistillationTrainer
from hfkd.utils.launch import launcher_flags

LAUNCH = ["/usr/bin/python3", "/opt/bin/accelerate", "launch"]


def launched(monkeypatch, *line):
    monkeypatch.setattr(hfkd.utils.launch, "_launcher", lambda: launcher_flags([*line]))


def test_a_process_that_does_not_know_its_rank_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but this process has no RANK"):
        DistillationArguments(str(tmp_path), bf16=False)


def test_a_trainer_that_works_alone_among_several_is_refused(monkeypatch, tmp_path):
    args = arguments(tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="WORLD_SIZE=2, but the process group has 1 processes"):
        DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    with pytest.raises(ValueError, match="WORLD_SIZE=2"):
        hfkd.utils.launch.processes()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        ([*LAUNCH, "--gradient_accumulation_steps", "5", "run.py", "--num_processes=9"], (5, None)),
        (["accelerate-launch", "--num-processes=2", "run.py"], (None, 2)),
        (["python", "-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "run"], (None, 2)),
        (["python", "run.py", "accelerate", "launch", "--num_processes", "2", "x.py"], None),
        (["bash"], None),
        ([], None),
    ],
)
def test_the_launchers_own_flags(line, flags):
    found = launcher_flags(line)
    if flags is None:
        assert found == {}
    else:
        assert (found["gradient_accumulation_steps"], found["num_processes"]) == flags


def test_accumulation_that_only_the_launcher_knows_of_is_refused(monkeypatch, tmp_path):
    launched(monkeypatch, *LAUNCH, "--gradient_accumulation_steps", "5", "run.py")
    with pytest.raises(ValueError, match="launched with gradient_accumulation_steps=5, but training uses 2"):
        arguments(tmp_path, gradient_accumulation_steps=2)
    assert arguments(tmp_path, gradient_accumulation_steps=5).gradient_accumulation_steps == 5


def test_accumulation_of_deepspeeds_launcher(monkeypatch, tmp_path):
    for steps in ("auto", "1"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
        arguments(tmp_path)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "3")
    with pytest.raises(ValueError, match="gradient_accumulation_steps=3, but training uses 1"):
        arguments(tmp_path)


def test_a_launcher_that_started_fewer_processes_than_it_was_told_is_refused(monkeypatch, tmp_path):
    launched(monkeypatch, *LAUNCH, "--cpu", "--num_processes", "2", "run.py")
    with pytest.raises(ValueError, match="--num_processes 2 has started 1"):
        arguments(tmp_path)


@pytest.mark.slow
def test_the_launcher_is_found_where_it_is_real(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "from hfkd import DistillationArguments\nDistillationArguments('out', use_cpu=True, bf16=False)\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--gradient_accumulation_steps", "5"]
    environment = os.environ | {"PYTHONPATH": str(Path(hfkd.utils.launch.__file__).parents[2])}
    done = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "launched with gradient_accumulation_steps=5, but training uses 1" in done.stderr


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launcher", "flags", "used"),
    [
        ("bf16", {"bf16": False}, "no"),
        ("bf16", {}, "bf16"),
        ("bf16", {"fp16": True}, "fp16"),
        ("bf16", {"bf16": True}, "bf16"),
        ("fp16", {"fp16": False, "bf16": False}, "no"),
        ("fp16", {"bf16": True}, "bf16"),
        ("fp16", {}, "fp16"),
        ("no", {"bf16": True}, "bf16"),
        ("no", {"bf16": False}, "no"),
    ],
)
def test_a_flag_wins_over_the_launchers_precision(monkeypatch, caplog, tmp_path, launcher, flags, used):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    args = DistillationArguments(str(tmp_path), use_cpu=True, report_to="none", **flags)
    assert (args.mixed_precision, args.bf16, args.fp16) == (used, used == "bf16", used == "fp16")
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == launcher
    assert ("accelerate was launched with mixed_precision" in caplog.text) is (used != launcher != "no")


@pytest.mark.parametrize(("bf16", "used"), [(False, "no"), (None, "bf16")])
def test_the_trainer_computes_and_reports_that_precision(monkeypatch, tmp_path, bf16, used):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = DistillationArguments(str(tmp_path), use_cpu=True, bf16=bf16, report_to="none")
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
    assert trainer.accelerator.mixed_precision == used
    recorded = trainer.settings
    assert (recorded["mixed_precision"], recorded["bf16"]) == (used, used == "bf16")
    assert (recorded["world_size"], recorded["gradient_accumulation_steps"], recorded["batch_size"]) == (1, 1, 8)
