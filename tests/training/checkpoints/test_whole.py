"""A checkpoint has its name when it is whole, and loses it before it goes; one that is not whole is never loaded."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from processes import on_ranks
from safetensors import SafetensorError
from safetensors.torch import load_file
from toys import Net, Rows, arguments, teacher
from transformers import PrinterCallback, Trainer, TrainerCallback

import hfkd.training.checkpoints.whole
from hfkd import DistillationTrainer
from hfkd.models import read_state_dict
from hfkd.training.checkpoints.manifest import MANIFEST, incomplete, write_manifest
from hfkd.training.checkpoints.whole import UNFINISHED, checkpoint_to_resume, last_checkpoint

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def make(folder, width=4, **keywords):
    rows = {"train_dataset": Rows(), "eval_dataset": Rows(13, seed=3)}
    trainer = DistillationTrainer(Net(width), teacher(), arguments(folder, **(SAVING | keywords)), **rows)
    trainer.remove_callback(PrinterCallback)  # what a test prints is written to a file too
    return trainer


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """A finished run with a checkpoint at each of its three steps, to be copied."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    make(folder).train()
    return folder


@pytest.fixture
def saved(three_steps, tmp_path):
    return Path(shutil.copytree(three_steps, tmp_path / "run"))


# ---- whole ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_lists_its_files(saved):
    assert names(saved) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "distillation.json"]
    sizes = json.loads((saved / "checkpoint-2" / MANIFEST).read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(sizes)
    assert {MANIFEST, *sizes} == set(names(saved / "checkpoint-2"))
    assert last_checkpoint(saved) == str(saved / "checkpoint-3")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.safetensors", "missing"),
        ("optimizer.pt", "missing"),
        ("rng_state.pth", "cut"),
        ("trainer_state.json", "cut"),
        (MANIFEST, "missing"),
        (MANIFEST, "cut"),
    ],
)
def test_one_that_lacks_something_is_passed_over_and_refused_by_name(saved, caplog, name, harm):
    broken = saved / "checkpoint-3" / name
    broken.unlink() if harm == "missing" else os.truncate(broken, 10)
    again = make(saved, max_steps=4)
    if name != MANIFEST or harm == "cut":
        with pytest.raises(ValueError, match="checkpoint-3 .* it is not complete: .*; choose another one"):
            again.train(resume_from_checkpoint=str(saved / "checkpoint-3"))
    again.train(resume_from_checkpoint=True)
    assert "checkpoint-3 is not complete and is skipped" in caplog.text
    assert again.state.global_step == 4
    assert incomplete(saved / "checkpoint-3") is None  # it was written anew


def test_a_checkpoint_of_plain_trainer_is_taken_by_its_name_only(saved):
    (saved / "checkpoint-3" / MANIFEST).unlink()
    assert last_checkpoint(saved) == str(saved / "checkpoint-2")
    named = str(saved / "checkpoint-3")
    assert checkpoint_to_resume(named, saved) == named
    with pytest.raises(ValueError, match="Can't find a valid checkpoint at nowhere .*: nowhere/files.json"):
        checkpoint_to_resume("nowhere", saved)


def test_a_finished_run_that_is_resumed_trains_no_further(saved):
    again = make(saved)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for name, parameter in load_file(saved / "checkpoint-3" / "model.safetensors").items():
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
    part = f".results.json.{'01' * 16}.part"
    (tmp_path / part).write_bytes(b"half")
    make(tmp_path, save_strategy="no").train()
    assert names(tmp_path) == ["distillation.json"]
    for name in (f"{UNFINISHED}/checkpoint-2", part):
        assert f"{name}, which an interrupted job left unfinished" in caplog.text


def test_a_student_is_saved_without_what_a_killed_save_had_written(tmp_path):
    (tmp_path / UNFINISHED / "model").mkdir(parents=True)
    (tmp_path / UNFINISHED / "model" / "adapter_model.safetensors").write_bytes(b"half")
    make(tmp_path).save_model()
    assert "model.safetensors" in names(tmp_path)
    assert not {"adapter_model.safetensors", UNFINISHED} & set(names(tmp_path))


@pytest.mark.parametrize("error", [OSError(), SafetensorError("")])
def test_an_error_without_words_names_the_checkpoint_too(tmp_path, monkeypatch, error):
    def fails(*arguments, **keywords):
        raise error

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(
        OSError, match=f"cannot write .*checkpoint-1: {type(error).__name__}; check that the disk is not full"
    ):
        make(tmp_path).train()


def two_ranks(folder, max_steps):
    """A session of a run on two processes, which goes on where the last one ended."""
    trainer = make(folder, max_steps=max_steps, per_device_train_batch_size=4, save_total_limit=2)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))


@pytest.mark.slow
def test_two_processes_write_one_checkpoint_and_go_on_from_it(tmp_path):
    for max_steps in (3, 5):
        codes = on_ranks(tmp_path / f"log-{max_steps}", 2, two_ranks, str(tmp_path / "run"), max_steps)
        assert codes == [0, 0], (tmp_path / f"log-{max_steps}-0").read_text()[-3000:]
    assert names(tmp_path / "run") == ["checkpoint-4", "checkpoint-5", "distillation.json"]
    assert incomplete(tmp_path / "run" / "checkpoint-5") is None
    files = json.loads((tmp_path / "run" / "checkpoint-5" / MANIFEST).read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} < set(files)
    assert two_ranks_alone(tmp_path / "alone") == load_bytes(tmp_path / "run")


def two_ranks_alone(folder):
    assert on_ranks(f"{folder}-log", 2, two_ranks, str(folder), 5) == [0, 0]
    return load_bytes(folder)


def load_bytes(run):
    return (run / "checkpoint-5" / "model.safetensors").read_bytes()


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


BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 2.0}


def test_the_best_checkpoint_of_a_folder_that_was_copied_is_the_copys(tmp_path):
    trainer = make(tmp_path / "run", **BEST)
    trainer.train()
    best = f"checkpoint-{trainer.state.best_global_step}"
    assert best != "checkpoint-3"
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(tmp_path / "run" / best)
    (tmp_path / "run" / best).mkdir()  # another run's, by now
    resumed = make(tmp_path / "copy", **BEST | {"max_steps": 4, "learning_rate": 2.0})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "copy" / best)
    kept = load_file(tmp_path / "copy" / best / "model.safetensors")
    assert all(torch.equal(resumed.model.state_dict()[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize("through", ["a link", "a relative path"])
def test_the_best_checkpoint_of_a_folder_that_has_another_path_now_is_not_rotated_away(tmp_path, monkeypatch, through):
    (tmp_path / "link").symlink_to(tmp_path)
    first = tmp_path / ("link" if through == "a link" else "before") / "run"
    torch.manual_seed(0)
    trainer = make(first, save_total_limit=2, **BEST)
    trainer.train()
    best = f"checkpoint-{trainer.state.best_global_step}"
    assert best != "checkpoint-3"
    if through == "a relative path":
        first.rename(tmp_path / "run")
        monkeypatch.chdir(tmp_path)
    resumed = make(tmp_path / "run", save_total_limit=2, **BEST | {"max_steps": 4})
    resumed.train(resume_from_checkpoint="run/checkpoint-3" if through == "a relative path" else True)
    assert resumed.state.best_global_step == trainer.state.best_global_step
    assert [name for name in names(tmp_path / "run") if "checkpoint" in name] == [best, "checkpoint-4"]
    kept = load_file(tmp_path / "run" / best / "model.safetensors")
    assert all(torch.equal(resumed.model.state_dict()[name], tensor) for name, tensor in kept.items())


def test_a_best_checkpoint_that_is_damaged_is_named_and_not_loaded(tmp_path):
    trainer = make(tmp_path, **BEST)
    trainer.train()
    weights = Path(trainer.state.best_model_checkpoint) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"the best checkpoint, .* its model.safetensors is damaged"):
        make(tmp_path, **BEST | {"max_steps": 4}).train(resume_from_checkpoint=True)


def test_the_limit_keeps_the_newest(tmp_path):
    make(tmp_path, max_steps=5, save_total_limit=2).train()
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5", "distillation.json"]


def test_a_checkpoint_that_is_a_link_goes_and_what_it_leads_to_stays(three_steps, tmp_path):
    shutil.copytree(three_steps / "checkpoint-1", tmp_path / "elsewhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-1").symlink_to(tmp_path / "elsewhere")
    make(tmp_path / "run", save_total_limit=1).train()
    assert [n for n in names(tmp_path / "run") if "checkpoint" in n or n == UNFINISHED] == ["checkpoint-3"]
    assert incomplete(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("best", [{}, BEST], ids=["last", "best"])
def test_a_folder_of_such_a_name_that_is_no_checkpoint_stays(tmp_path, best):
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "notes.txt").write_text("mine")
    trainer = make(tmp_path, save_total_limit=1, **best)
    trainer.train()
    step = trainer.state.best_global_step if best else 3
    assert [n for n in names(tmp_path) if "checkpoint" in n] == [f"checkpoint-{step}", "checkpoint-9"]
    assert (tmp_path / "checkpoint-9" / "notes.txt").read_text() == "mine"


def test_an_old_checkpoint_loses_its_name_before_its_files(tmp_path, monkeypatch):
    def interrupted(path, **keywords):
        assert path.parent.name == UNFINISHED
        raise KeyboardInterrupt

    trainer = make(tmp_path, max_steps=5, save_total_limit=2)
    monkeypatch.setattr(hfkd.training.checkpoints.whole.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert names(tmp_path) == [UNFINISHED, "checkpoint-2", "checkpoint-3", "distillation.json"]


def strictly(path):
    def refuse(word):
        raise AssertionError(f"{path} holds a bare {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_the_state_of_a_run_with_nan_is_json_and_is_resumed(tmp_path):
    """NaN is null there, as in results.json; in memory it is NaN."""

    def broken(items, temperature):
        return items.student.logits.sum(-1) * float("nan")

    def made(steps):
        rows = {"train_dataset": Rows(), "eval_dataset": Rows(13), "objective": broken}
        given = {"on_nan": "ignore", "eval_strategy": "steps", "eval_steps": 1, "max_steps": steps}
        return DistillationTrainer(Net(), teacher(), arguments(tmp_path, **(SAVING | given)), **rows)

    trainer = made(3)
    trainer.train()
    assert all(entry["loss"] != entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    trainer.save_state()
    for path in (tmp_path / "trainer_state.json", tmp_path / "checkpoint-3" / "trainer_state.json"):
        logged = [entry for entry in strictly(path)["log_history"] if "loss" in entry]
        assert [entry["loss"] for entry in logged] == [None] * 3
    again = made(4)
    again.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry] == [1, 2, 3, 4]


def test_a_checkpoint_of_fp16_training_is_resumed_in_another_precision(three_steps, tmp_path, caplog):
    """Its scaler is of no use there."""
    shutil.copytree(three_steps, tmp_path / "run")
    whole = make(tmp_path / "run", max_steps=4)
    whole.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    shutil.copytree(three_steps, tmp_path / "scaled")
    torch.save({"scale": 65536.0}, tmp_path / "scaled" / "checkpoint-2" / "scaler.pt")
    scaled = make(tmp_path / "scaled", max_steps=4)
    scaled.train(resume_from_checkpoint=str(tmp_path / "scaled" / "checkpoint-2"))
    assert "has the scaler.pt of an fp16 run, and this run is not in fp16: it is ignored" in caplog.text
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, scaled.model.state_dict()[name])


# ---- clocks, and other numbers of processes --------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2])
def test_the_new_checkpoint_stays_when_the_clock_goes_backwards(tmp_path, limit):
    class Back(TrainerCallback):
        def on_save(self, args, state, control, **keywords):
            future = time.time() + 3600  # what was written before the clock was set
            os.utime(tmp_path / f"checkpoint-{state.global_step}", (future - state.global_step,) * 2)

    trainer = make(tmp_path, save_total_limit=limit, max_steps=4)
    trainer.add_callback(Back())
    trainer.train()
    assert last_checkpoint(tmp_path, contents=True) == str(tmp_path / "checkpoint-4")
    assert len([name for name in names(tmp_path) if name.startswith("checkpoint-")]) == limit


def test_a_checkpoint_of_two_processes_has_no_random_numbers_for_one(saved, caplog):
    checkpoint = saved / "checkpoint-2"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    write_manifest(checkpoint)
    trainer = make(saved, max_steps=3)
    with caplog.at_level("WARNING", "hfkd"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert "has no rng_state.pth: random generators" in caplog.text


def test_weights_that_are_uploaded_while_training_are_not_taken_for_damaged(saved, monkeypatch):
    """Trainer copies them out of a checkpoint, over those of an earlier end of the run."""
    make(saved).save_model()
    copied = []

    def push(self, checkpoint):
        copied.append(shutil.copy(Path(checkpoint) / "model.safetensors", saved))
        read_state_dict(copied[-1])

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", push)
    make(saved, max_steps=4, push_to_hub=True).train(resume_from_checkpoint=True)
    assert len(copied) == 1
