"""ResultsCallback on real, tiny Trainer runs."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfkd.reports import ResultsCallback
from hfkd.reports.page import run_page

ITEMS, BATCH, EPOCHS = 20, 8, 4  # 3 steps an epoch, the last one with 4 items


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x, labels):
        logits = self.linear(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Data(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ITEMS, 3, generator=generator)
        self.labels = (self.x.sum(-1) > 0).long()

    def __len__(self):
        return ITEMS

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": self.labels[index]}


class Kill(TrainerCallback):
    """A kill signal, seen from Python: an exception no one catches, after the checkpoint of `step`."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            raise KeyboardInterrupt


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer(folder, *callbacks, config=None, **arguments):
    torch.manual_seed(0)
    defaults = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    callback = ResultsCallback(config or {"teacher": "big", "kd_weight": np.float32(0.5)})
    return Trainer(
        model=Model(),
        args=TrainingArguments(output_dir=str(folder), **(defaults | arguments)),
        train_dataset=Data(),
        eval_dataset=Data(),
        compute_metrics=accuracy,
        callbacks=[callback, *callbacks],
    )


def read(folder):
    return json.loads((folder / "results.json").read_text())


def curves(results):
    keys = ("epoch", "step", "loss", "eval_loss", "eval_accuracy", "learning_rate")
    return [{key: row[key] for key in keys} for row in results["epochs"]]


def test_finished_run(tmp_path):
    trainer(tmp_path).train()
    results = read(tmp_path)
    assert results["status"] == "finished"
    assert results["seed"] == 7
    assert results["train_steps"] == 12
    assert results["config"] == {"teacher": "big", "kd_weight": 0.5}
    assert [row["epoch"] for row in results["epochs"]] == [1.0, 2.0, 3.0, 4.0]
    best = max(results["epochs"], key=lambda row: row["eval_accuracy"])
    assert results["best"] == {"epoch": best["epoch"], "accuracy": best["eval_accuracy"]}
    assert results["last"] == {"epoch": 4.0, "accuracy": results["epochs"][-1]["eval_accuracy"]}
    (session,) = results["sessions"]
    assert session["items"] == ITEMS * EPOCHS  # the smaller last batches are not counted as full ones
    assert results["wall_time_seconds"] == session["seconds"] > session["evaluation_seconds"] > 0
    training_seconds = session["seconds"] - session["evaluation_seconds"]
    assert results["images_per_second"] == pytest.approx(ITEMS * EPOCHS / training_seconds)
    assert results["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "results.json" in os.listdir(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


def test_resume_after_a_kill_yields_the_complete_history(tmp_path):
    trainer(tmp_path / "whole").train()
    whole = read(tmp_path / "whole")

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", Kill(step=6)).train()
    killed = read(tmp_path / "parts")
    assert killed["status"] == "running"
    assert killed["train_steps"] == 6
    assert curves(killed) == curves(whole)[:2]

    trainer(tmp_path / "parts").train(resume_from_checkpoint=True)
    resumed = read(tmp_path / "parts")
    assert resumed["status"] == "finished"
    assert curves(resumed) == curves(whole)
    assert resumed["best"] == whole["best"]
    assert resumed["last"] == whole["last"]
    first, second = resumed["sessions"]
    assert first == killed["sessions"][0]
    assert (first["first_step"], first["last_step"], second["first_step"], second["last_step"]) == (0, 6, 6, 12)
    assert first["items"] + second["items"] == ITEMS * EPOCHS
    assert resumed["wall_time_seconds"] == pytest.approx(first["seconds"] + second["seconds"])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return (Data()[number % ITEMS] for number in range(1000))


def test_of_a_stream_without_a_length_no_epochs_are_known(tmp_path):
    """Trainer calls the end of the run the first epoch, whatever share of the rows has been read."""
    run = trainer(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3)
    run.train_dataset = Stream()
    run.train()
    results = read(tmp_path)
    assert results["train_epochs"] is None
    assert results["train_steps"] == 3
    assert results["sessions"][0]["items"] == 3 * BATCH
    page = tmp_path / "index.html"
    run_page(page, [], config={}, log_history=run.state.log_history, results=results)
    assert "epochs</th><td>not recorded</td>" in page.read_text()


def test_resume_after_max_steps(tmp_path):
    trainer(tmp_path, max_steps=6, lr_scheduler_type="constant").train()
    assert read(tmp_path)["status"] == "finished"
    trainer(tmp_path, max_steps=12, lr_scheduler_type="constant").train(resume_from_checkpoint=True)
    results = read(tmp_path)
    assert [row["step"] for row in results["epochs"]] == [3, 6, 9, 12]
    assert len(results["sessions"]) == 2
    assert results["train_steps"] == 12


@pytest.mark.parametrize("content", [None, "{half", "{}", "[]", '{"sessions": [{"first_step": 0}]}'])
def test_resume_without_a_readable_file_does_not_invent_time(tmp_path, content):
    trainer(tmp_path, max_steps=3).train()
    (tmp_path / "results.json").unlink()
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    trainer(tmp_path, max_steps=6).train(resume_from_checkpoint=True)
    results = read(tmp_path)
    assert [row["step"] for row in results["epochs"]] == [3, 6]  # the history is in the checkpoint
    assert results["wall_time_seconds"] is None
    assert results["images_per_second"] > 0
    assert results["sessions"][0]["seconds"] is None


def test_the_time_of_another_run_in_the_folder_is_not_this_ones(tmp_path):
    trainer(tmp_path / "mine", max_steps=3).train()
    trainer(tmp_path / "other", max_steps=9, learning_rate=0.3, seed=5).train()
    shutil.copy(tmp_path / "other" / "results.json", tmp_path / "mine" / "results.json")
    trainer(tmp_path / "mine", max_steps=6).train(resume_from_checkpoint=True)
    assert read(tmp_path / "mine")["wall_time_seconds"] is None


def test_a_new_run_starts_a_new_file(tmp_path):
    for _ in range(2):
        trainer(tmp_path, max_steps=3).train()
        assert len(read(tmp_path)["sessions"]) == 1


def test_evaluation_after_training_adds_no_time(tmp_path):
    run = trainer(tmp_path, max_steps=3)
    run.train()
    before = read(tmp_path)
    run.evaluate()
    after = read(tmp_path)
    assert after["status"] == "finished"
    assert len(after["epochs"]) == 1
    assert after["sessions"] == before["sessions"]
    assert after["wall_time_seconds"] == before["wall_time_seconds"]


def test_evaluation_alone_leaves_the_record_of_a_run(tmp_path):
    trainer(tmp_path, max_steps=3).train()
    before = (tmp_path / "results.json").read_bytes()
    trainer(tmp_path).evaluate()
    assert (tmp_path / "results.json").read_bytes() == before


def test_only_process_zero_writes(tmp_path):
    callback, control = ResultsCallback({}), TrainerControl()
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(is_world_process_zero=False)
    for event in (callback.on_train_begin, callback.on_evaluate, callback.on_save, callback.on_train_end):
        event(args, state, control)
    assert not os.listdir(tmp_path)


def test_without_the_metric_there_is_no_best_and_a_warning(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr("hfkd.reports.results.logger.warning", warned.append)
    callback, control = ResultsCallback({}, metric="eval_rouge", items_name="tokens"), TrainerControl()
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(
        log_history=[{"loss": math.nan, "epoch": 1, "step": 1}, {"eval_bleu": 1.0, "epoch": 1, "step": 1}]
    )
    callback.on_train_begin(args, state, control)
    callback.on_evaluate(args, state, control, metrics={"eval_bleu": 1.0})
    callback.on_evaluate(args, state, control, metrics={"eval_bleu": 1.0})
    results = read(tmp_path)
    assert results["best"] is None
    assert results["last"] is None
    assert "tokens_per_second" in results
    assert results["epochs"][0]["loss"] is None  # NaN
    assert len(warned) == 1
    assert "eval_bleu" in warned[0]
    assert "eval_rouge" in warned[0]


def test_unwritable_config_fails_when_built():
    with pytest.raises(ValueError, match=r"config\['objective'\].*function"):
        ResultsCallback({"objective": accuracy})
