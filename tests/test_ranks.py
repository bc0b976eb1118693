"""One process with 8 images = two with 4 = one with 4 accumulated twice: parameters, logs, thresholds, evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import on_ranks
from processes import script as processes_script

IMAGES = {"objective": "dkd(beta=2.0)", "weighting": "entropy", "max_steps": 5}
TEXT = {"objective": "kd(scale='none')", "weighting": "entropy", "max_steps": 5, "evaluate_kl": True}
JOBS = {
    "images, Energy KD": ("rank_job.py", IMAGES | {"temperature": "energy(ratio=0.2)"}),
    "images, CTKD": ("rank_job.py", IMAGES | {"temperature": "learned(warmup_epochs=0)"}),
    "language, Energy KD": ("rank_job_text.py", TEXT | {"temperature": "energy(ratio=0.2)"}),
    "language, CTKD": ("rank_job_text.py", TEXT | {"temperature": "learned(warmup_epochs=0)"}),
}
SPLITS = {
    "1 x 8": (1, {"per_device_train_batch_size": 8}),
    "1 x 4 x 2": (1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
    "2 x 4": (2, {"per_device_train_batch_size": 4}),
}
JOB = JOBS["images, Energy KD"][1]
TIMES = (
    "epoch",
    "step",
    "train_runtime",
    "runtime",
    "per_second",
    "total_flos",
)  # in a log, and not of the mathematics


def run(folder, processes, script="rank_job.py", job=JOB, launcher=None, **keywords):
    """The parameters and the record that `script` leaves in `folder`; `launcher`: a command to start it with."""
    folder.mkdir()
    here = Path(__file__).parent
    arguments = [str(here / script), str(folder), json.dumps(job | keywords)]
    if launcher is None:
        codes = on_ranks(folder / "log", processes, processes_script, *arguments)
        assert codes == [0] * processes, (folder / "log-0").read_text()[-4000:]
    else:
        path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        done = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((folder / "record.json").read_text())
    return torch.load(folder / "student.pt", weights_only=True), record


def run_splits(root, name):
    """`run` of a job for each way to make batches of 8."""
    script, job = JOBS[name]
    root.mkdir(exist_ok=True)
    return {way: run(root / way, count, script, job, **split) for way, (count, split) in SPLITS.items()}


def differences(one, other):
    """The largest difference of any parameter, of any number logged in training, and of the evaluation."""
    (parameters, record), (others, other_record) = one, other
    assert parameters.keys() == others.keys()
    logs = [[entry for entry in r["log"] if "loss" in entry] for r in (record, other_record)]
    scores = [r.get("scores", {"eval_loss": r.get("eval_loss")}) for r in (record, other_record)]
    assert len(logs[0]) == len(logs[1]) == 5
    return {
        "parameters": max((others[name] - p).abs().max().item() for name, p in parameters.items()),
        "training logs": max(_difference(a, b) for a, b in zip(*logs, strict=True)),
        "evaluation": _difference(*scores),
    }


def alike(one, other, way=None):
    """Logged numbers have four decimals, of which the last may differ by 1."""
    found = differences(one, other)
    assert found["parameters"] < 1e-6, way
    assert found["training logs"] < 1e-4 + 2e-5, way
    assert found["evaluation"] < 2e-5, way


def _difference(one, other):
    assert one.keys() == other.keys()
    return max(abs(other[k] - v) for k, v in one.items() if not any(time in k for time in TIMES))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run_splits(tmp_path_factory.mktemp("ranks"), "images, Energy KD")


@pytest.mark.parametrize("other", ["1 x 4 x 2", "2 x 4"])
def test_the_same_parameters_and_logs(runs, other):
    (whole, whole_record), (split, split_record) = runs["1 x 8"], runs[other]
    for name, parameter in whole.items():
        torch.testing.assert_close(
            split[name], parameter, rtol=0, atol=1e-6, msg=f"{name} differs between 1 x 8 and {other}"
        )
    assert split_record["thresholds"] == pytest.approx(whole_record["thresholds"], abs=1e-5)
    right = [
        [r["teacher_accuracy"] for r in one["log"] if "teacher_accuracy" in r] for one in (whole_record, split_record)
    ]
    assert right[0] == right[1] == [pytest.approx(round(13 * right[0][0]) / 13)]  # no row counts twice
    assert split_record["eval_loss"] == pytest.approx(whole_record["eval_loss"], abs=1e-6)
    steps = [[r for r in record["log"] if "loss" in r] for record in (whole_record, split_record)]
    assert len(steps[0]) == len(steps[1]) == 5
    for a, b in zip(*steps, strict=True):
        for key in ("loss", "ce", "kd", "temperature", "weight", "low_energy_share", "high_energy_share"):
            assert b[key] == pytest.approx(a[key], abs=1e-4 + 2e-5), f"{key} differs between 1 x 8 and {other}"


def test_a_student_that_is_evaluated_before_it_trains_is_one_student_on_all_ranks(tmp_path, runs):
    script, job = JOBS["images, Energy KD"]
    count, split = SPLITS["2 x 4"]
    alike(runs["1 x 8"], run(tmp_path / "two", count, script, job | {"evaluated_first": True}, **split))


def test_the_mean_loss_of_steps_that_are_not_logged_is_that_of_all_ranks(tmp_path):
    means = []
    for way in ("1 x 8", "2 x 4"):
        count, split = SPLITS[way]
        _, record = run(tmp_path / way, count, "rank_job.py", IMAGES, logging_strategy="no", **split)
        means += [entry["train_loss"] for entry in record["log"] if "train_loss" in entry]
    assert means[1] == pytest.approx(means[0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_job_is_the_same_however_it_is_split(tmp_path, name):
    runs = run_splits(tmp_path / "runs", name)
    for way in ("1 x 4 x 2", "2 x 4"):
        alike(runs["1 x 8"], runs[way], way)


@pytest.mark.slow
def test_states_beside_chunks_on_two_ranks_are_those_beside_whole_logits_on_one(tmp_path):
    objective = "kd + 2 * hidden_mse + minilm(heads=2) + attention_scores"
    job = "rank_job_text.py", TEXT | {"objective": objective, "temperature": "energy(ratio=0.2)"}
    whole = run(tmp_path / "whole", 1, *job, **SPLITS["1 x 4 x 2"][1])
    chunks = run(tmp_path / "chunks", 2, *job, loss_chunk_size=3, **SPLITS["2 x 4"][1])
    alike(whole, chunks)


@pytest.mark.slow
@pytest.mark.parametrize("term", ["fitnet(layer='conv')", "at(layers='conv')"])
def test_features_and_connectors_are_the_same_on_two_ranks_as_in_accumulated_batches(tmp_path, term):
    """The regressor has a batch norm, so that it sees the same parts in both."""
    job = {"objective": f"kd + 2 * {term}", "weighting": "entropy", "max_steps": 5}
    runs = {way: run(tmp_path / way.replace(" ", ""), *_split(way, job)) for way in ("1 x 4 x 2", "2 x 4")}
    alike(*runs.values())
    weights, record = runs["2 x 4"]
    name = term.partition("(")[0]
    assert any(key.endswith("regressor.bn.weight") for key in weights) == (name == "fitnet")
    assert all(row[name] > 0 for row in record["log"] if "loss" in row)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", ["crd(negatives=8, sampling='other_images', dimension=8)", "kd + fcfd", "reviewkd"]
)
def test_memories_and_paths_are_the_same_on_two_ranks_as_in_accumulated_batches(tmp_path, objective):
    """CRD's memories are moved once an optimizer step, by the rows of both ranks; FCFD's paths are drawn for both."""
    job = {"objective": objective, "weighting": "entropy", "max_steps": 4}
    parts = (_split(way, job) for way in ("1 x 4 x 2", "2 x 4"))
    one, two = (run(tmp_path / str(count), count, "rank_job_features.py", settings)[0] for count, _, settings in parts)
    assert one.keys() == two.keys()
    for name in one:
        if "pending" not in name:  # in the order in which they came
            torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    steps = [value for name, value in one.items() if name.endswith("bank.step")]
    assert steps == ([3] if "crd" in objective else [])


def _split(way, job):
    count, split = SPLITS[way]
    return count, "rank_job.py", job | split


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


@pytest.mark.slow
def test_ranks_leave_their_group_and_end_well(tmp_path):
    here = Path(__file__).parent
    surroundings = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(here / "exit_job.py"), str(tmp_path), "4"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{run} 0 0" for run in range(4)], done.stderr[-2000:]
    for run in range(4):
        said = (tmp_path / f"{run}.log").read_text()
        assert said.count("group left") == 2
        assert "destroy_process_group" not in said
