"""A checkpoint has its name when it is whole, and loses it before it goes; one that is not whole is never loaded."""

import json
import os
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from toys import Net, Rows, arguments, teacher
from transformers import PrinterCallback

import hfkd.whole_checkpoints
from hfkd import DistillationTrainer
from hfkd.report.results import ResultsCallback
from hfkd.whole_checkpoints import MANIFEST, UNFINISHED, checkpoint_to_resume, incomplete, last_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def make(folder, width=4, **keywords):
    rows = {"train_dataset": Rows(), "eval_dataset": Rows(13, seed=3)}
    trainer = DistillationTrainer(Net(width), teacher(), arguments(folder, **(SAVING | keywords)), **rows)
    trainer.remove_callback(PrinterCallback)  # what a test prints is written to a file too
    return trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def small_disk(size):
    """No file grows beyond `size` bytes: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- whole ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_lists_its_files(tmp_path):
    make(tmp_path).train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "distillation.json"]
    sizes = json.loads((tmp_path / "checkpoint-2" / MANIFEST).read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(sizes)
    assert {MANIFEST, *sizes} == set(names(tmp_path / "checkpoint-2"))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json", MANIFEST])
@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_one_that_lacks_something_is_passed_over_and_refused_by_name(tmp_path, caplog, name, harm):
    make(tmp_path).train()
    broken = tmp_path / "checkpoint-3" / name
    broken.unlink() if harm == "missing" else os.truncate(broken, 10)
    again = make(tmp_path, max_steps=4)
    if name != MANIFEST or harm == "cut":
        with pytest.raises(ValueError, match="checkpoint-3 is no complete checkpoint: .*; name another one"):
            again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-3 is not complete and is passed over" in caplog.text
    assert again.state.global_step == 4
    assert incomplete(tmp_path / "checkpoint-3") is None  # it was written anew


def test_a_checkpoint_of_plain_trainer_is_taken_by_its_name_only(tmp_path):
    make(tmp_path).train()
    (tmp_path / "checkpoint-3" / MANIFEST).unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    named = str(tmp_path / "checkpoint-3")
    assert checkpoint_to_resume(named, tmp_path) == named
    with pytest.raises(
        ValueError, match="resume_from_checkpoint=nowhere is no complete checkpoint: nowhere/files.json"
    ):
        checkpoint_to_resume("nowhere", tmp_path)


def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path):
    first = make(tmp_path)
    first.train()
    again = make(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for name, parameter in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], parameter), name


@pytest.mark.parametrize("max_steps", [8, 6])  # ends with its second epoch, and in the middle of it
def test_a_checkpoint_at_the_end_of_an_epoch_holds_its_evaluation(tmp_path, max_steps):
    trainer = make(tmp_path, save_steps=2, max_steps=max_steps, eval_strategy="epoch")
    trainer.train()
    for step, evaluated in {2: 0, 4: 1, 6: 1 + (max_steps == 6), 8: 2}.items():
        if step <= max_steps:
            state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
            assert sum("eval_loss" in entry for entry in state["log_history"]) == evaluated


def test_what_a_stopped_job_left_is_deleted_with_a_message(tmp_path, caplog):
    half = tmp_path / UNFINISHED / "checkpoint-2"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".results.json.0123.part").write_bytes(b"half")
    make(tmp_path, save_strategy="no").train()
    assert names(tmp_path) == ["distillation.json"]
    for name in (f"{UNFINISHED}/checkpoint-2", ".results.json.0123.part"):
        assert f"{name} was left half done by a job that was stopped, and is deleted" in caplog.text


# ---- Trainer's own rules ------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_found_under_its_name(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 2.0}
    trainer = make(tmp_path, max_steps=4, save_total_limit=1, **best)
    trainer.train()
    step = trainer.state.best_global_step
    assert step < 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{step}")
    state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == trainer.state.best_model_checkpoint
    kept = load_file(tmp_path / f"checkpoint-{step}" / "model.safetensors")
    assert all(torch.equal(trainer.model.state_dict()[name], tensor) for name, tensor in kept.items())
    assert [n for n in names(tmp_path) if "checkpoint" in n] == [f"checkpoint-{step}"]


def test_the_limit_keeps_the_newest(tmp_path):
    make(tmp_path, max_steps=5, save_total_limit=2).train()
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5", "distillation.json"]


def test_an_old_checkpoint_loses_its_name_before_its_files(tmp_path, monkeypatch):
    def interrupted(path, **keywords):
        assert path.parent.name == UNFINISHED
        raise KeyboardInterrupt

    trainer = make(tmp_path, max_steps=5, save_total_limit=2)
    monkeypatch.setattr(hfkd.whole_checkpoints.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert names(tmp_path) == [UNFINISHED, "checkpoint-2", "checkpoint-3", "distillation.json"]


# ---- full disk, read-only output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 1100, 2500])  # in the run's record, the student, the optimizer
def test_a_full_disk_is_an_error_that_names_the_checkpoint_and_leaves_nothing(tmp_path, size):
    trainer = make(tmp_path, optim="adamw_torch")
    trainer.record.write(tmp_path, trainer.distillation_loss)
    trainer.fit_slots()
    whole = names(tmp_path)
    trainer.record = type("Written", (), {"write": lambda *a: None})()
    with small_disk(size), pytest.raises(OSError, match=f"cannot write {tmp_path}/checkpoint-1: .*is the disk full"):
        trainer.train()
    assert names(tmp_path) == whole


def test_a_student_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    make(tmp_path / "run").save_model(str(tmp_path / "student"))
    tmp_path = tmp_path / "student"
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert "model.safetensors" in before
    larger = make(tmp_path.parent / "other run", width=64)
    with small_disk(3000), pytest.raises(OSError, match=f"cannot write {tmp_path}: .*is the disk full"):
        larger.save_model(str(tmp_path))
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_results_that_do_not_fit_leave_the_earlier_ones(tmp_path):
    trainer = make(tmp_path, save_strategy="no")
    trainer.add_callback(ResultsCallback({}, metric="eval_loss"))
    trainer.train()
    before = (tmp_path / "results.json").read_bytes()
    with small_disk(500), pytest.raises(OSError, match=f"cannot write {tmp_path}/results.json: File too large"):
        trainer.evaluate()
    assert (tmp_path / "results.json").read_bytes() == before
    assert names(tmp_path) == ["distillation.json", "results.json"]


def test_an_output_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match="file"):
        make(tmp_path / "file" / "run").train()
    assert names(tmp_path) == ["file"]
