"""Damage to a checkpoint is found before anything is resumed, and named; other people's files are left alone."""

import json
import logging
import shutil

import pytest
import torch
from text_toys import TokenRows, language_model
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.training.checkpoints.manifest import MANIFEST, incomplete
from hfkd.training.checkpoints.whole import UNFINISHED, remove_unfinished

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def make(folder, **keywords):
    args = arguments(folder, **(SAVING | keywords))
    return DistillationTrainer(Net(), teacher(), args, train_dataset=Rows(16))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = make(folder)
    trainer.train()
    return folder, {k: v.clone() for k, v in trainer.model.state_dict().items()}


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run"


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_is_found_and_named(copy):
    checkpoint = copy / "checkpoint-1"
    entries = json.loads((checkpoint / MANIFEST).read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(entries)
    for name in entries:
        for at in (0.0, 0.4, 1.0):
            flip(checkpoint / name, at)
            assert incomplete(checkpoint) is None  # as long as ever
            said = incomplete(checkpoint, contents=True)
            assert said.startswith(
                f"its {name} is damaged: its checksum differs from the one stored when it was written (if"
            )
            if at == 0.4:
                with pytest.raises(ValueError, match=rf"it is not complete: its {name} is damaged.*choose another"):
                    make(copy, max_steps=3).train(resume_from_checkpoint=str(checkpoint))
            flip(checkpoint / name, at)
    assert incomplete(checkpoint, contents=True) is None


def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before(copy, run, caplog):
    flip(copy / "checkpoint-2" / "optimizer.pt")
    trainer = make(copy)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-2 is not complete and is skipped: its optimizer.pt is damaged" in caplog.text
    assert all(torch.equal(v, run[1][k]) for k, v in trainer.model.state_dict().items())


def test_a_checkpoint_whose_user_split_its_weights_is_resumed_without_its_list(tmp_path):
    def trainer():
        args = arguments(tmp_path, **SAVING)
        return DistillationTrainer(language_model(), language_model(), args, train_dataset=TokenRows(16))

    whole = trainer()
    whole.train()
    checkpoint = tmp_path / "checkpoint-1"
    half = type(whole.model).from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    half.save_pretrained(checkpoint, max_shard_size="2KB")
    with pytest.raises(
        ValueError, match="its model.safetensors is missing .if you changed it on purpose, delete files.json"
    ):
        trainer().train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / MANIFEST).unlink()
    again = trainer()
    again.train(resume_from_checkpoint=str(checkpoint))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_a_list_of_no_files_is_none(copy):
    (copy / "checkpoint-2" / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="its files.json lists no file"):
        make(copy, max_steps=3).train(resume_from_checkpoint=str(copy / "checkpoint-2"))


def test_a_checkpoint_without_its_list_and_some_state_is_warned_of(copy, caplog):
    checkpoint = copy / "checkpoint-1"
    for name in (MANIFEST, "optimizer.pt", "scheduler.pt"):
        (checkpoint / name).unlink()
    (checkpoint / "adapter").mkdir()  # a folder is no optimizer
    with caplog.at_level(logging.WARNING):
        make(copy).train(resume_from_checkpoint=str(checkpoint))
    assert "has no state of the optimizer, nor of the learning rate schedule" in caplog.text


def test_a_checkpoint_that_goes_while_it_is_read_is_refused(copy):
    checkpoint = copy / "checkpoint-1"

    class Rotated(DistillationTrainer):
        def _load_optimizer_and_scheduler(self, path):
            super()._load_optimizer_and_scheduler(path)
            (checkpoint / "rng_state.pth").unlink()  # as another process's rotation does

    args = arguments(copy, **SAVING)
    with pytest.raises(ValueError, match=r"was changed or deleted while it was being read \(.*rng_state.pth"):
        Rotated(Net(), teacher(), args, train_dataset=Rows(16)).train(resume_from_checkpoint=str(checkpoint))


def test_only_our_own_unfinished_things_are_deleted_and_never_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("years of work")
    run = tmp_path / "run"
    (run / UNFINISHED / "checkpoint-3").mkdir(parents=True)
    (run / UNFINISHED / "notes").mkdir()
    (run / UNFINISHED / "old-checkpoint-1").symlink_to(outside)
    part = f".results.json.{'0f' * 16}.part"
    for name in (".notes.part", part, f".a.{'z' * 32}.part"):
        (run / name).write_text("x")
    (run / f".b.{'0e' * 16}.part").symlink_to(outside / "thesis.txt")
    remove_unfinished(run)
    assert (outside / "thesis.txt").read_text() == "years of work"
    left = {p.name for p in run.iterdir()} | {p.name for p in (run / UNFINISHED).iterdir()}
    assert left == {
        UNFINISHED,
        "notes",
        "old-checkpoint-1",
        ".notes.part",
        f".a.{'z' * 32}.part",
        f".b.{'0e' * 16}.part",
    }


def test_a_folder_of_unfinished_things_that_is_a_link_is_refused(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / UNFINISHED).symlink_to(outside)
    with pytest.raises(
        ValueError, match="_unfinished is a symbolic link, and checkpoints would be written to its target: remove it"
    ):
        make(run).train()
    assert (outside / "model").read_text() == "mine"
