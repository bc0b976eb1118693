"""Names that a run writes to, or into what it publishes."""

import os
import pickle

import pytest
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer
from hfkd.reports import ResultsCallback

TOKEN = "hf_" + "PlantedInTheName" * 2


@pytest.mark.parametrize("name", ["output_dir", "hub_model_id", "model_license"])
@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x00", "\x85", "\u2028", "\u2029"])
def test_control_characters_are_refused(tmp_path, name, character):
    given = (
        {"folder": tmp_path / f"a{character}b"}
        if name == "output_dir"
        else {"folder": tmp_path, name: f"a{character}b"}
    )
    with pytest.raises(ValueError, match=rf"{name}=.* has a line break or another control character"):
        arguments(**given)


def test_ordinary_names_are_taken(tmp_path):
    made = arguments(
        tmp_path / "läuft gut – 2", hub_model_id="someone/named-1.0", model_license="Apache 2.0 (see NOTICE)"
    )
    assert made.output_dir.endswith("läuft gut – 2")


@pytest.mark.parametrize("name", ["a/b/c", "someone/na me", "someone/--x"])
def test_a_repository_that_cannot_be_is_refused_before_training(tmp_path, name):
    with pytest.raises(ValueError, match="is not a valid repository"):
        arguments(tmp_path, hub_model_id=name)


def test_a_folder_with_tokens_is_not_uploaded(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("WANDB_API_KEY=planted")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"output_dir=\. has \.env, in which .*: choose another output_dir"):
        arguments(".", push_to_hub=True)
    arguments(".")
    arguments("run", push_to_hub=True)


def fifo(path):
    os.mkfifo(path)


def dangling(path):
    path.symlink_to(path.parent / "nowhere")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fifo, "is not a folder; choose another output_dir"),
        (lambda path: path.write_text("x"), "is not a folder; choose another output_dir"),
        (dangling, "is a link whose target does not exist"),
    ],
    ids=["a pipe", "a file", "a dangling link"],
)
@pytest.mark.parametrize("below", [False, True])
def test_what_can_be_no_output_folder_is_refused_and_left(tmp_path, make, message, below):
    path = tmp_path / "there"
    make(path)
    with pytest.raises(ValueError, match=f"{path} {message}"):
        arguments(path / "run" if below else path)
    assert os.listdir(tmp_path) == ["there"]


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    DistillationTrainer(Net(), teacher(), arguments(tmp_path / "link"), train_dataset=Rows()).train()
    assert (tmp_path / "real" / "distillation.json").is_file()


def test_a_run_stays_in_its_folder_when_the_program_leaves_the_directory(tmp_path, monkeypatch):
    class Leaves(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            (tmp_path / "elsewhere").mkdir(exist_ok=True)
            monkeypatch.chdir(tmp_path / "elsewhere")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    saving = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    rows = {"train_dataset": Rows(), "eval_dataset": Rows(8)}
    run = DistillationTrainer(Net(), teacher(), arguments("run", **saving, load_best_model_at_end=True), **rows)
    run.add_callback(ResultsCallback({}, metric="eval_loss"))
    run.add_callback(Leaves())
    run.train()
    run.save_model()
    run.create_model_card()
    assert not os.listdir(tmp_path / "elsewhere")
    left = {"README.md", "checkpoint-1", "checkpoint-3", "distillation.json", "model.safetensors", "results.json"}
    assert left <= set(os.listdir(tmp_path / "here" / "run"))


def test_a_folder_below_the_working_directory_is_published_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(arguments("runs/one"))).output_dir == os.path.join("runs", "one")
    assert pickle.loads(pickle.dumps(arguments("/nowhere/one"))).output_dir == "/nowhere/one"


def test_no_secret_gets_into_the_pickled_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted-api-key")
    given = {"run_name": f"try {TOKEN}", "hub_token": "planted-token", "hub_revision": "planted-token planted-api-key"}
    run = DistillationTrainer(Net(), teacher(), arguments(tmp_path, **given), train_dataset=Rows())
    run.train()
    run.save_model()
    assert run.args.run_name == f"try {TOKEN}"
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        for secret in (TOKEN, "planted-token", "planted-api-key"):
            assert secret.encode() not in path.read_bytes(), path
    assert pickle.loads(pickle.dumps(run.args)).run_name == "try HIDDEN"


@pytest.mark.parametrize("name", ["distillation.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_named_as_such(tmp_path, name):
    (tmp_path / name).mkdir()
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(OSError, match="cannot write .*s a directory.*; a folder has the file's name: move it away"):
        trainer.save_model()


def test_a_pipe_in_the_place_of_the_record_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "distillation.json")
    DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows()).train()
    assert (tmp_path / "distillation.json").is_file()


@pytest.mark.parametrize("name", ["teacher_cache_dir", "scan_cache_dir"])
def test_a_cache_is_not_uploaded_with_the_student(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name}=\S*run/cache is inside output_dir=run, which push_to_hub=True"):
        arguments("run", push_to_hub=True, **{name: "run/cache"})
    for folder, upload in (("run/cache", False), ("run/_cache", True), ("cache", True), ("running/cache", True)):
        arguments("run", push_to_hub=upload, **{name: folder})
