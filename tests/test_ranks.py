"""One process with 8 images = two with 4 = one with 4 accumulated twice: parameters, logs, thresholds, evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

JOB = {
    "objective": "dkd(beta=2.0)",
    "temperature": "energy(ratio=0.2)",
    "weighting": "entropy",
    "max_steps": 5,
}


def run(folder, processes, script="rank_job.py", job=JOB, launcher=None, **keywords):
    """The parameters and the record that `script` leaves in `folder`; `launcher`: a command in place of torchrun."""
    folder.mkdir()
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command = launcher or (command if processes > 1 else [sys.executable])
    path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    arguments = [str(here / script), str(folder), json.dumps(job | keywords)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((folder / "record.json").read_text())
    return torch.load(folder / "student.pt", weights_only=True), record


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    return {
        "1 x 8": run(root / "whole", 1, per_device_train_batch_size=8),
        "1 x 4 x 2": run(root / "accumulated", 1, per_device_train_batch_size=4, gradient_accumulation_steps=2),
        "2 x 4": run(root / "ranks", 2, per_device_train_batch_size=4),
    }


@pytest.mark.parametrize("other", ["1 x 4 x 2", "2 x 4"])
def test_the_same_parameters_and_logs(runs, other):
    (whole, whole_record), (split, split_record) = runs["1 x 8"], runs[other]
    for name, parameter in whole.items():
        torch.testing.assert_close(
            split[name], parameter, rtol=0, atol=1e-6, msg=f"{name} differs between 1 x 8 and {other}"
        )
    assert split_record["thresholds"] == pytest.approx(whole_record["thresholds"], abs=1e-5)
    assert split_record["eval_loss"] == pytest.approx(whole_record["eval_loss"], abs=1e-6)
    steps = [[r for r in record["log"] if "loss" in r] for record in (whole_record, split_record)]
    assert len(steps[0]) == len(steps[1]) == 5
    for a, b in zip(*steps, strict=True):
        for key in ("loss", "ce", "kd", "temperature", "weight", "low_energy_share", "high_energy_share"):
            assert b[key] == pytest.approx(a[key], abs=2e-5), f"{key} differs between 1 x 8 and {other}"


@pytest.mark.slow
def test_the_released_he_da_step_trains_on_two_ranks(tmp_path):
    """Two forwards before one backward, of batches that differ in size between the ranks."""
    job = {"he_da": "released", "max_steps": 4}
    weights, record = run(tmp_path / "two", 2, job=job, per_device_train_batch_size=4)
    steps = [row for row in record["log"] if "loss" in row]
    assert len(steps) == 4
    for row in steps:
        # Each rank's mixed mean counts by its share of the images, and the loss is the mean over the ranks.
        assert row["loss"] == pytest.approx(0.1 * row["ce"] + 0.9 * (row["kd"] + row["mixed_kd"]), abs=2e-4)
    assert all(torch.isfinite(parameter).all() for parameter in weights.values())
