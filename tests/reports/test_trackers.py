"""Trackers get the parts of the loss by the names that the log has."""

import json
import sqlite3

import pytest
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.losses.logits.dist import DIST


def test_tensorboard_has_each_part_of_the_loss(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = arguments(tmp_path / "run", max_steps=3, report_to="tensorboard", eval_strategy="steps", eval_steps=3)
    slots = {"objective": "kd + 2 * dist", "weighting": "entropy"}
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), eval_dataset=Rows(8, seed=3), **slots)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    parts = {"loss", "ce", "kd", "dist", "temperature", "weight", "grad_norm", "learning_rate"}
    assert {f"train/{part}" for part in parts} <= set(events.Tags()["scalars"])
    assert {"eval/loss", "train/teacher_accuracy"} <= set(events.Tags()["scalars"])
    logged = [row for row in trainer.state.log_history if "kd" in row]
    for part in parts:
        written = {event.step: event.value for event in events.Scalars(f"train/{part}")}
        assert written == pytest.approx({row["step"]: row[part] for row in logged}, rel=1e-5)


def test_tensorboard_takes_slots_that_are_objects(tmp_path, monkeypatch):
    """It writes the arguments as JSON, which ended the run when training began."""
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = arguments(tmp_path / "run", max_steps=1, report_to="tensorboard", objective=[(2.0, DIST())])
    DistillationTrainer(Net(), teacher(), args, train_dataset=Rows()).train()
    assert b"DIST(beta=1.0, gamma=1.0)" in next((tmp_path / "events").rglob("events*")).read_bytes()


def test_trackio_has_each_part_of_the_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is in no extra: pip install trackio")
    args = arguments(tmp_path / "run", max_steps=2, report_to="trackio", project="toys", run_name="one")
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), objective="kd + 2 * dist")
    trainer.train()
    with sqlite3.connect(tmp_path / "trackio" / "toys.db") as store:
        written = [json.loads(row) for (row,) in store.execute("select metrics from metrics order by id")]
    logged = [row for row in trainer.state.log_history if "kd" in row]
    for part in ("loss", "ce", "kd", "dist", "temperature", "weight"):
        found = [row[f"train/{part}"] for row in written if f"train/{part}" in row]
        assert found == pytest.approx([row[part] for row in logged])
