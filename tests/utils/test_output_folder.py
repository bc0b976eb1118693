"""An output folder that is one of the inputs is refused, and what only looks like one is not."""

import os

import pytest
from text_toys import TokenRows, language_model, tokenizer
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.models.language import causal_lm
from hfkd.utils.output_folder import refuse_inputs


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a network, a run of two checkpoints, a store, and three kinds of data."""
    monkeypatch.chdir(tmp_path)
    files = ["net/config.json", "net/model.safetensors", "runs/t/model.safetensors", "runs/t/w.pth"]
    files += ["runs/t/checkpoint-5/model.safetensors", "store/logits.bin", "images/train/a.png", "rows/train.jsonl"]
    for name in [*files, "cifar_resnet20/config.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.symlink("net", "link")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("output", "settings", "said"),
    [
        ("net", {"student_name": "net"}, "output_dir=net is the folder of student_name=net"),
        ("./runs/../net/", {"teacher_name": ["cifar_resnet20", "net"]}, "is the folder of teacher_name=net"),
        ("link", {"tokenizer_name": "net"}, "is the folder of tokenizer_name=net"),
        ("net", {"model_name_or_path": "link"}, "is the folder of model_name_or_path=link"),
        ("runs/t", {"chain": ["runs/t/checkpoint-5", "x"]}, "chain=runs/t/checkpoint-5 is in output_dir=runs/t"),
        ("runs/t", {"student_checkpoint": "runs/t/model.safetensors"}, "is in output_dir=runs/t, where"),
        ("runs/t/checkpoint-5", {"teacher_name_or_path": "runs/t"}, "output_dir=runs/t/checkpoint-5 is a part of"),
        ("store", {"teacher_cache_dir": "store"}, "is the folder of teacher_cache_dir=store"),
        ("images", {"dataset_name": "images"}, "is the folder of dataset_name=images"),
        ("images/run", {"dataset_name": "images"}, "inside dataset_name=images, so that a later run would read"),
        ("rows", {"sets_from": "rows"}, "is the folder of sets_from=rows"),
    ],
)
def test_an_input_is_refused(place, output, settings, said):
    with pytest.raises(ValueError, match=f"{said}.*; choose another output_dir$"):
        refuse_inputs(output, settings)


@pytest.mark.parametrize(
    ("output", "settings"),
    [
        ("runs", {"teacher_name": ["runs/t"], "dataset_name": "rows", "teacher_checkpoint": None}),
        ("runs/t", {"teacher_checkpoint": ["runs/t/w.pth"], "student_name": "runs"}),
        ("runs/s", {"teacher_name": ["runs/t"], "teacher_cache_dir": "runs/s/store", "dataset_name": "Org/data"}),
        ("net/student", {"teacher_name": ["net"]}),
        ("rows/run", {"dataset_name": "rows"}),
        ("cifar_resnet20", {"student_name": "cifar_resnet20"}),  # an architecture; the folder is not looked at
        ("empty", {"student_name_or_path": "empty"}),  # a Hub id under which nothing is here
        (".", {"student_name": "", "teacher_name": []}),
    ],
)
def test_what_stays_whole_is_not(place, output, settings):
    refuse_inputs(output, settings)


@pytest.mark.parametrize("which", ["student", "teacher", "tokenizer"])
def test_the_trainer_knows_what_it_was_given(tmp_path, which):
    folder = tmp_path / which
    made = {"student": language_model(), "teacher": language_model(24), "tokenizer": tokenizer()}
    made[which].save_pretrained(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    if which == "tokenizer":
        made[which] = tokenizer().from_pretrained(folder)
    else:
        made[which] = causal_lm(str(folder))
    trainer = DistillationTrainer(
        made["student"],
        made["teacher"],
        arguments(folder),
        train_dataset=TokenRows(),
        processing_class=made["tokenizer"],
    )
    with pytest.raises(ValueError, match=f"is the folder of {which}_name="):
        trainer.train()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_goes_on_in_its_own_folder(tmp_path):
    for _ in range(2):
        args = arguments(tmp_path / "run", max_steps=1, save_strategy="steps", save_steps=1)
        trainer = DistillationTrainer(Net(), teacher(), args, train_dataset=Rows())
        trainer.train(resume_from_checkpoint=(tmp_path / "run" / "checkpoint-1").is_dir())
    assert trainer.state.global_step == 1
