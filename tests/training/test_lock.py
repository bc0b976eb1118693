"""A folder belongs to one run at a time."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from processes import obey_permissions, print_to, start
from scan_job import packed
from toys import Net, Rows, arguments, teacher
from transformers import TrainerCallback

from hfkd import DistillationTrainer
from hfkd.training.lock import LOCK, OWNER, locked

HOLD = """
import sys, time
from hfkd.training.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""


def make(folder, rows=None, settings=(), **keywords):
    args = arguments(folder, max_steps=1, **dict(settings))
    return DistillationTrainer(Net(), teacher(), args, train_dataset=rows or Rows(8), **keywords)


@pytest.fixture
def holder(tmp_path):
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_writes_nothing_and_a_dead_one_is_followed(tmp_path, holder):
    run = tmp_path / "run"
    trainer = make(run)
    before = sorted(p.name for p in run.rglob("*"))
    assert before == [OWNER, LOCK]
    with pytest.raises(ValueError, match=rf"is in use by process {holder.pid} on .*choose another output_dir"):
        trainer.train()
    assert sorted(p.name for p in run.rglob("*")) == before
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    trainer.train()
    assert trainer.state.global_step == 1
    assert not {LOCK, OWNER} & {p.name for p in run.rglob("*")}


def test_the_same_folder_in_one_process(tmp_path):
    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **keywords):
            with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
                make(tmp_path / "run").train()
            seen.append(state.global_step)

    seen = []
    make(tmp_path / "run", callbacks=[Second()]).train()
    assert seen == [1]
    with locked(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_a_dead_process_whose_workers_live_on_is_waited_for(tmp_path, monkeypatch, caplog, holder):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = json.loads((tmp_path / "run" / OWNER).read_text())
    (tmp_path / "run" / OWNER).write_text(json.dumps(owner | {"pid": dead.pid}))
    monkeypatch.setattr("hfkd.training.lock.ORPHANS", 0.5)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="is in use"), locked(tmp_path / "run"):
        pass
    assert time.monotonic() - start >= 0.5
    assert "which has died: waiting for its workers to end" in caplog.text


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def acquire(self, timeout=None):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        pass
    assert "cannot be locked (no flock here): do not start a second run in it" in caplog.text


def _train_as_ordinary_user(log, folder, settings):
    print_to(log)
    obey_permissions()
    make(folder, packed(8), settings, temperature="energy(ratio=0.2)").train()


@pytest.mark.parametrize("which", ["folder", "parent", "teacher_cache_dir"])
def test_a_folder_that_may_not_be_written_is_named(tmp_path, which):
    shut, log = tmp_path / "shut", tmp_path / "log"
    shut.mkdir(mode=0o500)
    folder = {"folder": shut, "parent": shut / "run"}.get(which, tmp_path / "run")
    process = start(_train_as_ordinary_user, str(log), str(folder), {which: str(shut)} if "cache" in which else {})
    process.join()
    shut.chmod(0o700)
    said = log.read_text().splitlines()[-1]
    assert process.exitcode == 1
    assert re.search("shut.*choose a(nother folder| folder that is)", said), said
    if "cache" not in which:
        assert "output_dir=" in said
        assert "teacher scan" not in log.read_text()
