"""The environment says what matters and nothing private."""

import getpass
import json
import os
import socket
import subprocess

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from hfkd.reports import ResultsCallback, environment


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    return subprocess.run(("git", *identity, *arguments), cwd=folder, check=True, capture_output=True, text=True).stdout


def test_git_commit_and_dirty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init")
    assert environment()["git"] is None  # no commit yet
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first", "--no-verify")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert environment()["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("2")
    assert environment()["git"] == {"commit": commit, "dirty": True}


def test_outside_of_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git"] is None


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


def test_content_is_plain_and_public(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    facts = environment()
    text = json.dumps(facts)
    assert facts["versions"]["torch"]
    assert set(facts["versions"]) >= {"python", "transformers", "accelerate", "hfkd"}
    assert facts["devices"]
    assert facts["cpu_count"] == os.cpu_count()
    assert facts["torch_threads"] >= 1
    for private in ("hf_secret", str(tmp_path), os.path.expanduser("~") + "/", socket.gethostname()):
        assert private not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_run_on_the_processor_has_no_gpu_in_its_record(tmp_path, monkeypatch):
    """A machine may have GPUs that a run with use_cpu, or an analysis with --use_cpu, did not use."""
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    assert environment()["devices"] == environment(torch.device("cuda", 0))["devices"] == ["GPU 0", "GPU 1"]
    callback, state, control = ResultsCallback({}), TrainerState(), TrainerControl()
    callback.on_train_begin(args, state, control)
    callback.on_train_end(args, state, control)
    (device,) = json.loads((tmp_path / "results.json").read_text())["environment"]["devices"]
    assert "GPU" not in device
