"""A run that the system ends on a signal goes on from there as if it had not been ended, and is not called finished."""

import json
import os
import signal
import time

import pytest
import torch
from processes import on_ranks
from torch import nn
from toys import Net, Rows, arguments, teacher

from hfkd import DistillationTrainer
from hfkd.reports import ResultsCallback
from hfkd.training.checkpoints.preemption import STATUS, Preemption

SETTINGS = {"enable_jit_checkpoint": True, "max_steps": 6, "learning_rate": 0.01, "logging_steps": 10}
SETTINGS |= {"eval_strategy": "epoch"}  # of 4 steps


class Ended(Net):
    """Gets the signal in the forward pass of step `at`; has what remembers each pass."""

    def __init__(self, at=None):
        super().__init__()
        self.norm, self.dropout, self.at, self.passes = nn.BatchNorm2d(4), nn.Dropout(0.3), at, 0

    def forward(self, x):
        self.passes += self.training
        if self.training and self.passes == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(500):
                time.sleep(0.0 if self.manager.is_checkpoint_requested else 0.01)
        return self.head(self.dropout(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


def made(folder, at=None, **more):
    student = Ended(at)
    args = arguments(folder, **SETTINGS | more)
    trainer = DistillationTrainer(student, teacher(), args, train_dataset=Rows(), eval_dataset=Rows(16))
    student.manager = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Preemption)).jit_manager
    student.manager.kill_wait = 0
    trainer.add_callback(ResultsCallback(trainer.settings))
    return trainer


@pytest.fixture(autouse=True)
def handler():
    """Each trainer takes the place of the one before it."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def scores(trainer):
    return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


@pytest.mark.parametrize("at", [2, 4])
def test_the_run_ends_with_a_checkpoint_from_which_it_goes_on(tmp_path, at):
    whole = made(tmp_path / "whole")
    whole.train()
    ended = made(tmp_path / "run", at)
    with pytest.raises(SystemExit) as left:
        ended.train()
    assert left.value.code == STATUS == 143
    assert ended.state.global_step == at
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{at}"]
    results = tmp_path / "run" / "results.json"
    assert not results.exists() or json.loads(results.read_text())["status"] == "running"
    resumed = made(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert scores(resumed) == scores(whole)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_after_the_last_step_the_run_is_finished(tmp_path):
    trainer = made(tmp_path, SETTINGS["max_steps"])
    trainer.train()
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"
    assert (tmp_path / "checkpoint-6").is_dir()


def test_without_the_flag_nobody_listens(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    trainer = DistillationTrainer(Net(), teacher(), arguments(tmp_path), train_dataset=Rows())
    assert not any(isinstance(c, Preemption) for c in trainer.callback_handler.callbacks)
    assert signal.getsignal(signal.SIGTERM) is before


def signalled_rank(folder, at):
    """A run on this rank; the signal comes to the second one alone."""
    made(folder, at if os.environ["RANK"] == "1" else None).train()


def test_a_signal_to_one_rank_ends_all_at_the_same_step(tmp_path):
    assert on_ranks(tmp_path / "log", 2, signalled_rank, str(tmp_path / "run"), 3) == [STATUS] * 2
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = made(tmp_path / "run", per_device_train_batch_size=16)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
