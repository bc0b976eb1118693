"""Trackers get the parts of the loss by the names that the log has."""

import json
import sqlite3

import pytest
import torch
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

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


@pytest.mark.parametrize("begins", ["training", "evaluation"])
def test_trackers_and_files_have_the_slots_that_the_trainer_was_given(tmp_path, begins):
    """Not those of the arguments, in whose place they are: all runs of a comparison would look like plain KD."""
    told = []

    class Tracker(TrainerCallback):
        """Asks for the settings as those of transformers do, once, whatever comes first."""

        def on_train_begin(self, args, state, control, **keywords):
            told.append(json.loads(args.to_json_string()))

        def on_log(self, args, state, control, **keywords):
            told.append(args.to_dict())

    args = arguments(tmp_path / "run", max_steps=1)
    given = {"objective": DIST(), "weighting": "entropy", "ce_weight": 0.3, "kd_weight": 0.7}
    data = {"train_dataset": Rows(), "eval_dataset": Rows(8, seed=3), "callbacks": [Tracker()]}
    trainer = DistillationTrainer(Net(), teacher(), args, **given, **data)
    trainer.train() if begins == "training" else trainer.evaluate()
    trainer.save_model()
    told.append(vars(torch.load(tmp_path / "run" / "training_args.bin", weights_only=False)))
    wanted = given | {"objective": "DIST(beta=1.0, gamma=1.0)", "temperature": 4.0}
    assert len(told) > 1
    assert all({name: one[name] for name in wanted} == wanted for one in told)
    own = {"objective": "kd", "temperature": None, "weighting": "uniform", "ce_weight": 0.1, "kd_weight": 0.9}
    assert {name: args.to_dict()[name] for name in own} == own  # another trainer may share them


@pytest.mark.parametrize(("he_da", "temperature"), [("none", None), ("released", 4.0)])
def test_a_temperature_that_only_the_mixed_images_read_is_told(tmp_path, he_da, temperature):
    told = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args, state, control, **keywords):
            told.append(args.to_dict()["temperature"])

    args = arguments(tmp_path, max_steps=1, logging_steps=1, he_da=he_da, objective="at(layers='conv')")
    trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(), callbacks=[Tracker()])
    trainer.train()
    assert told == [temperature]
    assert [row.get("temperature") for row in trainer.state.log_history if "loss" in row] == [temperature]


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
