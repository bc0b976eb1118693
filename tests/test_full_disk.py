"""A full disk and an output that cannot be written are errors that name the path, and nothing half written stays."""

import re
import resource
from contextlib import contextmanager

import pytest
import torch
from bad_files import packed
from datasets import Dataset
from test_whole import make, names
from text_toys import language_model, tokenizer
from toys import teacher

from hfkd.evaluation.run import evaluate_sets
from hfkd.reports.results import ResultsCallback
from hfkd.teachers import FrozenTeacher, scan
from hfkd.training.checkpoints.whole import _named_errors
from hfkd.training.run_identity import RunRecord


@contextmanager
def small_disk(size):
    """No file grows beyond `size` bytes: writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 1100, 2500])  # in the run's record, the student, the optimizer
def test_a_full_disk_is_an_error_that_names_the_checkpoint_and_leaves_nothing(tmp_path, monkeypatch, size):
    trainer = make(tmp_path, optim="adamw_torch")
    trainer.record.write(tmp_path, trainer.distillation_loss)
    trainer.fit_slots()
    whole = names(tmp_path)
    monkeypatch.setattr(RunRecord, "write", lambda *arguments: None)  # it is there
    with (
        small_disk(size),
        pytest.raises(OSError, match=f"cannot write {tmp_path}/checkpoint-1: .*check that the disk is not full"),
    ):
        trainer.train()
    assert names(tmp_path) == whole


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("NCCL timed out")])
def test_what_is_not_of_the_disk_stays_what_it_is_and_leaves_nothing(tmp_path, monkeypatch, error):
    trainer = make(tmp_path)

    def fails(folder):
        raise error

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", fails)
    with pytest.raises(type(error), match=str(error)):
        trainer.train()
    assert names(tmp_path) == ["distillation.json"]


@pytest.mark.parametrize("name", ["none/file.pt", "."])
def test_a_file_that_torch_cannot_open_is_an_error_of_the_disk(tmp_path, name):
    refused = pytest.raises(OSError, match="cannot write student: .*the folder is writable")
    with refused, _named_errors("student", tmp_path / "unfinished"):
        torch.save({}, tmp_path / name)


def test_a_student_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    make(tmp_path / "run").save_model(str(tmp_path / "student"))
    tmp_path = tmp_path / "student"
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert "model.safetensors" in before
    larger = make(tmp_path.parent / "other run", width=64)
    with small_disk(3000), pytest.raises(OSError, match=f"cannot write {tmp_path}: .*check that the disk is not full"):
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
    with pytest.raises(ValueError, match="file is not a folder; choose another output_dir"):
        make(tmp_path / "file" / "run")
    assert names(tmp_path) == ["file"]


def test_a_scan_that_does_not_fit_is_used_but_not_stored_and_leaves_nothing(tmp_path, caplog):
    with small_disk(50):
        found = scan(FrozenTeacher(teacher()), packed(), cache_dir=tmp_path, progress_bar=False)
    assert found.energy.isfinite().all()
    assert re.search(f"not stored, .*: .*cannot write {tmp_path}/scan-.*: File too large; free some", caplog.text)
    assert names(tmp_path) == []


def test_answers_that_do_not_fit_are_named_and_leave_nothing(tmp_path):
    rows = Dataset.from_dict({"prompt": ["ask you"] * 20, "references": [["a"]] * 20})
    limits = {"max_new_tokens": 2, "max_prompt_length": 8, "seeds": (1,)}
    with (
        small_disk(200),
        pytest.raises(OSError, match="cannot write .*/out/dolly-seed1.jsonl: File too"),
    ):
        evaluate_sets(language_model(), tokenizer(), {"dolly": rows}, tmp_path / "out", **limits)
    assert names(tmp_path / "out") == []
